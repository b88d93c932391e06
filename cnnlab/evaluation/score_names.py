"""List the names of scores; apart from the code that computes them, which the command line need not load."""

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy")
TOP5_CLASSES = 10  # with fewer, being among five of them says little
