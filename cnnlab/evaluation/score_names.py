"""Names of the figures of a model's predictions. Light, for the command line."""

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy")
TOP5_CLASSES = 10  # with fewer, being among five of them says little
