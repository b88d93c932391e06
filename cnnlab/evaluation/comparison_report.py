"""What several runs show side by side: scores with intervals, verdicts in words, and figures."""

import dataclasses
import math

import numpy as np

from cnnlab.evaluation import plots, statistics
from cnnlab.utils.text import csv_line, markdown

CURVES = "comparison_curves.png"
SECONDS = "accuracy_by_seconds.png"
VERDICTS = "verdicts.md"
COLUMNS = (
    *("label", "model", "seed", "test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_loss"),
    *("test_balanced_accuracy", "test_macro_f1", "test_top5_accuracy"),
    *("calibration_error", "params", "trainable_params", "train_seconds", "run_id"),
)
EXAMPLES = 12  # images of each direction in the grid of disagreements


def comparison(results, test_images=None):
    """What several models show on the same test images.

    Args:
        results: `RunResult`s with predictions of the same test images.
        test_images: `(N, H, W, 3) uint8`; without them there is no grid of disagreements.

    Returns:
        `(verdicts, figures, texts)`: sentences, as `verdicts` gives them, and figures and texts by artifact path.
    """
    named = dict(zip(labels_of(results), results, strict=True))
    class_names = results[0].class_names
    matrices = {f"{label} ({r.test_accuracy:.1%})": r.test.confusion for label, r in named.items()}
    calibrations = {label: statistics.calibration(r.test.probabilities, r.test.labels) for label, r in named.items()}
    figures = {
        CURVES: plots.curves(
            {label: r.history for label, r in named.items()}, {label: r.stage_borders for label, r in named.items()}
        ),
        SECONDS: plots.accuracy_by_seconds(
            {label: (r.train_seconds, r.test_accuracy, *r.test.interval) for label, r in named.items()}
        ),
        "comparison_confusion.png": plots.confusion_matrices(matrices, class_names),
        "calibration.png": plots.reliability(calibrations),
    }
    if test_images is not None and len(groups := groups_of(results)) > 1:
        first, second = (max(group, key=lambda r: r.test_accuracy) for group in list(groups.values())[:2])
        labels = {r.run_id: label for label, r in named.items()}
        figures["disagreements.png"] = _disagreements(
            {labels[r.run_id]: r.test for r in (first, second)}, class_names, test_images
        )
    said = verdicts(results)
    return said, figures, {"comparison.csv": _table(named, calibrations), VERDICTS: _in_markdown(named, said)}


def labels_of(results) -> list[str]:
    """A label for each result: its model; with the seed or the run's id where several have the same."""
    models = [r.recipe.label for r in results]
    if len(set(models)) == len(models):
        return models
    seeds = [f"{r.recipe.label} seed {r.recipe.seed}" for r in results]
    if len(set(seeds)) == len(seeds) and len({_group(r) for r in results}) == len(set(models)):
        return seeds
    return [f"{r.recipe.label} {r.run_id[:6]}" for r in results]


def groups_of(results) -> dict:
    """Results by label of what differs only in the seed, best mean test accuracy first."""
    groups = {}
    for r in results:
        groups.setdefault(_group(r), []).append(r)
    models = [recipe.label for recipe in groups]
    labels = [
        recipe.label if models.count(recipe.label) == 1 else f"{recipe.label} {group[0].run_id[:6]}"
        for recipe, group in groups.items()
    ]
    named = dict(zip(labels, groups.values(), strict=True))
    return dict(sorted(named.items(), key=lambda item: -np.mean([r.test_accuracy for r in item[1]])))


def verdicts(results) -> list[str]:
    """A sentence for each model's score, then for the best against each other one.

    One training of each: Wilson's interval, and the paired bootstrap with McNemar's test on the same test images.
    Several seeds of each: the t interval of the mean, and Welch's of the difference. Since the best is picked after
    looking, the intervals of differences are widened for all pairs (Bonferroni; Dunn, 1961).
    """
    groups = groups_of(results)
    said = []
    for label, group in groups.items():
        total = len(group[0].test.labels)
        if len(group) == 1:
            low, high = group[0].test.interval
            said.append(f"{label}: {group[0].test_accuracy:.1%} of {total:,} test images ({low:.1%} to {high:.1%})")
        else:
            mean, low, high = statistics.mean_interval([r.test_accuracy for r in group])
            said.append(f"{label}: {mean:.1%} on average over {len(group)} seeds ({low:.1%} to {high:.1%})")
    pairs = math.comb(len(groups), 2)
    (best, first), *others = groups.items()
    for label, group in others:
        confidence = 1 - (1 - statistics.CONFIDENCE) / pairs
        if min(len(first), len(group)) > 1:
            scores = [[r.test_accuracy for r in runs] for runs in (first, group)]
            difference = statistics.seeds_difference(*scores, confidence)
            said.append(statistics.in_words(best, label, *difference, confidence, "Welch's t over the seeds"))
        else:
            difference = statistics.paired(first[0].test.right, group[0].test.right, confidence)
            said.append(difference.in_words(best, label))
    return said


def _group(result):
    return dataclasses.replace(result.recipe, seed=0)


def _in_markdown(named, said):
    """The scores, best first, and the verdicts."""
    columns = ("model", "test accuracy", "95 % interval", "test loss", "parameters", "train seconds")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for label, r in sorted(named.items(), key=lambda item: -item[1].test_accuracy):
        low, high = r.test.interval
        cells = (f"{r.test_accuracy:.2%}", f"{low:.1%} to {high:.1%}", f"{r.test_loss:.4f}", f"{r.params:,}")
        lines.append(f"| {markdown(label)} | {' | '.join(cells)} | {r.train_seconds:.1f} |")
    return "\n".join([*lines, "", *(f"- {markdown(line)}" for line in said)]) + "\n"


def _table(named, calibrations):
    lines = [COLUMNS]
    for label, r in named.items():
        low, high = r.test.interval
        further = (r.test.balanced_accuracy, r.test.macro_f1, r.test.top5_accuracy)
        scores = (r.test_accuracy, low, high, r.test_loss, *further, calibrations[label][3])
        sizes = (r.params, r.trainable_params, round(r.train_seconds, 1), r.run_id)
        lines.append(
            (label, r.recipe.label, r.recipe.seed, *("" if s is None else round(s, 4) for s in scores), *sizes)
        )
    return "".join(map(csv_line, lines))


def _disagreements(predictions, class_names, images):
    """Images that only one of two models gets right, the other's most confident mistakes first."""
    chosen, captions, counts = [], [], []
    (first, a), (second, b) = predictions.items()
    for label, mine, other_label, other in ((first, a, second, b), (second, b, first, a)):
        only = np.flatnonzero(mine.right & ~other.right)
        counts.append(f"only {label} right: {len(only):,}")
        only = only[np.argsort(-other.probabilities[only].max(axis=1))][:EXAMPLES]
        chosen.extend(only)
        mistaken = other.predicted[only]
        captions.extend(
            f"{label}: {class_names[a.labels[i]]}\n{other_label}: {class_names[wrong]}"
            for i, wrong in zip(only, mistaken, strict=True)
        )
    return plots.image_grid(images[chosen], captions, "; ".join(counts))
