"""List the names of the scores, without the code that computes them, so that the command line starts fast."""

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy")
TOP5_CLASSES = 10  # with fewer, being among five of them says little
