"""Compare several runs on the same test images: scores with intervals, verdicts in sentences, and figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnlab.evaluation import plots, statistics
from cnnlab.evaluation.predictions import Predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.recipe import Recipe
from cnnlab.utils.text import csv_line, markdown

if TYPE_CHECKING:
    from cnnlab.data.image_dataset import Images

CURVES = "comparison_curves.png"
SECONDS = "accuracy_by_seconds.png"
VERDICTS = "verdicts.md"
COLUMNS = (
    *("label", "model", "seed", "test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_loss"),
    *("test_balanced_accuracy", "test_macro_f1", "test_top5_accuracy"),
    *("calibration_error", "params", "trainable_params", "train_seconds", "run_id", "failed"),
)
EXAMPLES = 12  # images of each direction in the grid of disagreements


def comparison(
    results: Sequence[RunResult], test_images: Images | None = None, failed: Sequence[tuple[str, str]] = ()
) -> tuple[list[str], dict[str, plots.Figure], dict[str, str]]:
    """Compare several models on the same test images.

    Args:
        results: with predictions of the same test images.
        test_images: `(N, H, W, 3)`; without them there is no grid of disagreements.
        failed: labels of models that could not be trained, and why; they are in the tables.

    Returns:
        The sentences of `verdicts`, and figures and texts by artifact path.
    """
    named = dict(zip(labels_of(results), results, strict=True))
    class_names = results[0].class_names
    tests = {label: r.tested for label, r in named.items()}
    matrices = {f"{label} ({test.accuracy:.1%})": test.confusion for label, test in tests.items()}
    calibrations = {label: statistics.calibration(test.probabilities, test.labels) for label, test in tests.items()}
    figures = {
        CURVES: plots.curves(
            {label: r.history for label, r in named.items()},
            {label: r.stage_borders for label, r in named.items()},
            {label: r.kept_epoch for label, r in named.items()},
        ),
        SECONDS: plots.accuracy_by_seconds(
            {label: (r.train_seconds, r.test_accuracy, *tests[label].interval) for label, r in named.items()}
        ),
        "comparison_confusion.png": plots.confusion_matrices(matrices, class_names),
        "calibration.png": plots.reliability(calibrations),
    }
    if test_images is not None and len(groups := groups_of(results)) > 1:
        first, second = (max(group, key=lambda r: r.test_accuracy) for group in list(groups.values())[:2])
        labels = {r.run_id: label for label, r in named.items()}
        figures["disagreements.png"] = _disagreements(
            {labels[r.run_id]: r.tested for r in (first, second)}, class_names, test_images
        )
    sentences = verdicts(results)
    texts = {
        "comparison.csv": _table(named, calibrations, failed),
        VERDICTS: _in_markdown(named, sentences, failed),
    }
    return sentences, figures, texts


def labels_of(results: Sequence[RunResult]) -> list[str]:
    """Label each result by its model, and by the seed or the run's id where several have the same model."""
    models = [r.recipe.label for r in results]
    if len(set(models)) == len(models):
        return models
    seeds = [f"{r.recipe.label} seed {r.recipe.seed}" for r in results]
    if len(set(seeds)) == len(seeds) and len({_group(r) for r in results}) == len(set(models)):
        return seeds
    return [f"{r.recipe.label} {r.run_id[:6]}" for r in results]


def groups_of(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Group results that differ only in the seed, by label, best mean test accuracy first."""
    groups: dict[Recipe, list[RunResult]] = {}
    for r in results:
        groups.setdefault(_group(r), []).append(r)
    models = [recipe.label for recipe in groups]
    labels = [
        recipe.label if models.count(recipe.label) == 1 else f"{recipe.label} {group[0].run_id[:6]}"
        for recipe, group in groups.items()
    ]
    named = dict(zip(labels, groups.values(), strict=True))
    return dict(sorted(named.items(), key=lambda item: -float(np.mean([r.test_accuracy for r in item[1]]))))


def verdicts(results: Sequence[RunResult]) -> list[str]:
    """Write a sentence on each model's score, then on the best model against each other one.

    For one training of each: Wilson's interval, and the paired bootstrap with McNemar's test on the same test images.
    For several seeds of each: the t interval of the mean, and Welch's of the difference. Since the best one is picked
    by its score, the intervals of differences are widened for all pairs (Bonferroni; Dunn, 1961).
    """
    groups = groups_of(results)
    said = []
    for label, group in groups.items():
        test = group[0].tested
        total = len(test.labels)
        if len(group) == 1:
            low, high = test.interval
            said.append(f"{label}: {group[0].test_accuracy:.1%} of {total:,} test images ({low:.1%} to {high:.1%})")
        else:
            mean, low, high = statistics.mean_interval([r.test_accuracy for r in group])
            said.append(f"{label}: {mean:.1%} on average over {len(group)} seeds ({low:.1%} to {high:.1%})")
    pairs = math.comb(len(groups), 2)
    (best, first), *others = groups.items()
    for label, group in others:
        confidence = 1 - (1 - statistics.CONFIDENCE) / pairs
        if min(len(first), len(group)) > 1:
            best_scores, scores = ([r.test_accuracy for r in runs] for runs in (first, group))
            interval = statistics.seeds_difference(best_scores, scores, confidence)
            said.append(statistics.in_words(best, label, *interval, confidence, "Welch's t over the seeds"))
        else:
            paired = statistics.paired(first[0].tested.right, group[0].tested.right, confidence)
            said.append(paired.in_words(best, label))
    return said


def _group(result: RunResult) -> Recipe:
    """Return the recipe without its seed."""
    return dataclasses.replace(result.recipe, seed=0)


def _in_markdown(named: Mapping[str, RunResult], sentences: Sequence[str], failed: Sequence[tuple[str, str]]) -> str:
    """Write a table of the scores, best first, and the verdicts."""
    columns = ("model", "test accuracy", "95 % interval", "test loss", "parameters", "train seconds")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for label, r in sorted(named.items(), key=lambda item: -item[1].test_accuracy):
        low, high = r.tested.interval
        cells = (f"{r.test_accuracy:.2%}", f"{low:.1%} to {high:.1%}", f"{r.test_loss:.4f}", f"{r.params:,}")
        lines.append(f"| {markdown(label)} | {' | '.join(cells)} | {r.train_seconds:.1f} |")
    lines += [f"| {markdown(label)} | failed: {markdown(reason)} |{' |' * 4}" for label, reason in failed]
    return "\n".join([*lines, "", *(f"- {markdown(line)}" for line in sentences)]) + "\n"


def _table(
    named: Mapping[str, RunResult],
    calibrations: Mapping[str, statistics.Calibration],
    failed: Sequence[tuple[str, str]],
) -> str:
    lines: list[tuple[Any, ...]] = [COLUMNS]
    for label, r in named.items():
        test = r.tested
        low, high = test.interval
        further = (test.balanced_accuracy, test.macro_f1, test.top5_accuracy)
        scores = (r.test_accuracy, low, high, r.test_loss, *further, calibrations[label][3])
        sizes = (r.params, r.trainable_params, round(r.train_seconds, 1), r.run_id)
        rounded = ("" if s is None else round(s, 4) for s in scores)
        lines.append((label, r.recipe.label, r.recipe.seed, *rounded, *sizes, ""))
    lines += [(label, *[""] * (len(COLUMNS) - 2), reason) for label, reason in failed]
    return "".join(map(csv_line, lines))


def _disagreements(
    predictions: Mapping[str, Predictions], class_names: tuple[str, ...], images: Images
) -> plots.Figure:
    """Draw images that only one of two models gets right, the other's most confident mistakes first."""
    chosen, captions, counts = [], [], []
    (first, a), (second, b) = predictions.items()
    for label, mine, other_label, other in ((first, a, second, b), (second, b, first, a)):
        only = np.flatnonzero(mine.right & ~other.right)
        counts.append(f"only {label} right: {len(only):,}")
        only = only[np.argsort(-other.probabilities[only].max(axis=1))][:EXAMPLES]
        chosen.extend(only)
        for i, wrong in zip(only, other.predicted[only], strict=True):
            captions.append(f"{label}: {class_names[a.labels[i]]}\n{other_label}: {class_names[wrong]}")
    return plots.image_grid(images[chosen], captions, "; ".join(counts))
