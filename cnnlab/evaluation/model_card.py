"""The model card of a registered run (after Mitchell et al., 2019, arXiv:1810.03993), in Markdown."""

import numpy as np

from cnnlab.evaluation import statistics
from cnnlab.utils.text import markdown

FITTED = {"crop": "cut to their middle square and scaled", "pad": "padded to a square and scaled"}


def model_card(result, tag) -> str:
    """Data, recipe, scores with intervals, confusion matrix, intended use and limits of one model.

    Args:
        result: a `RunResult` with test predictions.
        tag: what its run's tags say, by their names without our prefix.
    """
    test, names = result.test, result.class_names
    low, high = test.interval
    *_, calibration_error = statistics.calibration(test.probabilities, test.labels)
    picture = result.recipe.stored_size or result.recipe.image_size
    on_test = tag["validation"] == "test set"
    weights = result.recipe.weights
    limits = [
        f"It gives one of these {len(names)} classes for any picture, also for one that shows none of them.",
        f"Pictures are {FITTED.get(result.recipe.resize_mode, 'stretched')} to {picture} by {picture} pixels for it.",
        "The scores hold for pictures like the test images; on others they are usually lower.",
        f"Its confidence is off by {calibration_error:.1%} on average (expected calibration error on the test images).",
    ]
    if on_test:
        limits.append("It was validated on the test images while it trained: the test score may be a little too high.")
    if stand_in := tag.get("dataset_stands_in_for"):
        limits.append(
            f"Its images stand in for {markdown(stand_in)}, which could not be had: this is a trial of the tools."
        )
    if weights == "random":
        limits.append("Its frozen layers have random weights: it was not pre-trained.")
    code = tag.get("git_commit", "not a checkout") + (" and changes" if tag.get("git_dirty") == "True" else "")
    sections = {
        "Scores": [
            f"- test accuracy {test.accuracy:.2%} of {len(test.labels):,} images "
            f"({low:.2%} to {high:.2%}, Wilson's 95 % interval), test loss {test.loss:.4f}",
            "- test "
            + ", ".join(
                f"{name.replace('_', ' ')} {value:.2%}" for name, value in test.scores.items() if name != "accuracy"
            ),
            f"- validation accuracy {result.validation.accuracy:.2%} of {len(result.validation.labels):,} images"
            + (", the test images themselves" if on_test else ", held out from the training set"),
        ],
        "Data": [
            f"- {markdown(result.dataset_name)}, {len(names)} classes: {', '.join(map(markdown, names))}",
            f"- sha256 of all images and labels: `{tag['dataset_digest']}`",
            f"- sha256 of the test images: `{test.digest}`",
        ],
        "Recipe": [
            *(f"- {name}: {markdown(value)}" for name, value in result.recipe.params().items()),
            f"- {result.params:,} weights, {result.trainable_params:,} trained, in {result.train_seconds:.0f} s",
        ],
        "Made with": [
            f"- run `{result.run_id}`",
            f"- code: {code}",
            *(f"- {key.removeprefix('version.')} {value}" for key, value in tag.items() if key.startswith("version.")),
        ],
        "Precision and recall": _by_class(test, names),
        "Confusion matrix": _confusion(test, names),
        "Intended use": ["Naming what is in a picture that shows one of the classes; trying, teaching and comparing."],
        "Limits": [f"- {limit}" for limit in limits],
    }
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    title = (
        f"**{markdown(result.recipe.label)}** on **{markdown(result.dataset_name)}**: test accuracy {test.accuracy:.2%}"
    )
    return f"# {markdown(result.name)}\n\n{title} ({low:.1%} to {high:.1%}).\n\n{body}\n"


def _by_class(test, names):
    """A Markdown table, the lowest recall first, of at most 20 classes."""
    precision, recall, f1, count = test.by_class
    lines = [("class", "precision", "recall", "F1", "test images")]
    order = np.argsort(recall)
    for i in order[:20]:
        lines.append((names[i], *(f"{value:.1%}" for value in (precision[i], recall[i], f1[i])), count[i]))
    if len(order) > 20:
        lines.append((f"{len(order) - 20} more classes", "", f"{recall[order[20]]:.1%} and more", "", ""))
    return _table(lines)


def _confusion(test, names):
    """A Markdown table, rows true and columns predicted; beyond 20 classes the ten commonest confusions."""
    matrix = test.confusion
    if len(names) <= 20:
        lines = [("true \\ predicted", *names)]
        lines += [(name, *row) for name, row in zip(names, matrix.tolist(), strict=True)]
    else:
        wrong = matrix * (1 - np.eye(len(names), dtype=int))
        order = np.argsort(wrong, axis=None)[::-1][:10]
        lines = [("true", "predicted", "images")]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        lines += [(names[true], names[predicted], wrong[true, predicted]) for true, predicted in pairs]
    return _table(lines)


def _table(lines):
    """Lines of a Markdown table, the first one its head."""
    head, *body = ["| " + " | ".join(map(markdown, line)) + " |" for line in lines]
    return [head, "| " + " | ".join(["---"] * len(lines[0])) + " |", *body]
