"""Compute intervals of scores, paired comparisons of two models, and calibration errors from test predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 2000
BINS = 15

Integers: TypeAlias = npt.NDArray[np.integer[Any]]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
# Mean confidence and accuracy of each bin, its number of images, and the expected calibration error.
Calibration: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64], float]


@dataclass(frozen=True)
class Paired:
    """The comparison of two models on the same images."""

    difference: float  # score of the first model minus that of the second, -1..1
    low: float  # of its bootstrap interval
    high: float
    confidence: float  # of the interval
    only_first: int  # number of images that only the first gets right
    only_second: int
    # Of McNemar's exact test that both err equally often; `None` for a score that is no share of images.
    p_value: float | None

    def in_words(self, first: str, second: str) -> str:
        """Say which of the two named models is better, or that the difference is within noise."""
        method = "paired bootstrap" + ("" if self.p_value is None else f", McNemar p = {self.p_value:.2g}")
        return in_words(first, second, self.difference, self.low, self.high, self.confidence, method)


def in_words(
    first: str, second: str, difference: float, low: float, high: float, confidence: float, method: str
) -> str:
    """Say which of two models is better, or that the difference is within noise.

    `difference`, from `low` to `high`, is the score of the first minus that of the second, -1..1, with its interval,
    which was computed by `method`.
    """
    if low <= 0 <= high:
        return (
            f"{first} and {second}: the difference is within noise ({100 * difference:+.1f} points, "
            f"{100 * low:+.1f} to {100 * high:+.1f} at {100 * confidence:.3g} %; {method})"
        )
    if difference < 0:
        first, second, difference, low, high = second, first, -difference, -high, -low
    return (
        f"{first} is better than {second} by {100 * difference:.1f} points "
        f"({100 * low:.1f} to {100 * high:.1f} at {100 * confidence:.3g} %; {method})"
    )


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Compute the interval of an accuracy of `correct` of `total` images (Wilson, 1927, JASA 22; statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    interval: Any = proportion_confint(int(correct), int(total), alpha=1 - CONFIDENCE, method="wilson")
    return float(interval[0]), float(interval[1])


def mean_interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Return `(mean, low, high)` of the scores of at least two seeds (Student's t, as the seeds are few; SciPy)."""
    from scipy import stats

    mean, error = float(np.mean(scores)), stats.sem(scores)
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(scores) - 1, loc=mean, scale=error)
    return mean, max(0.0, float(low)), min(1.0, float(high))


def seeds_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return `(difference, low, high)` of the mean scores of two models (Welch's t interval, 1947; SciPy).

    Each has scores of at least two seeds, 0..1. The interval covers the chance of the seeds only, not that the test
    images are a sample.
    """
    from scipy import stats

    difference = float(np.mean(first) - np.mean(second))
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return difference, difference, difference
    welch: Any = stats.ttest_ind(first, second, equal_var=False)
    interval = welch.confidence_interval(confidence)
    return difference, float(interval.low), float(interval.high)


def paired(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], confidence: float = CONFIDENCE, seed: int = 0
) -> Paired:
    """Compare whether two models get the same images right, `(N,)` each.

    The interval is the percentile bootstrap over images of the difference in accuracy (Efron and Tibshirani, 1993;
    `scipy.stats.bootstrap`); the test is McNemar's exact one on the images that one model gets right and the other
    wrong (McNemar, 1947; recommended for one training of each by Dietterich, 1998; statsmodels).
    """
    from scipy import stats
    from statsmodels.stats.contingency_tables import mcnemar

    differences = first.astype(float) - second  # (N,) float64: -1, 0 or 1
    low = high = float(differences.mean())
    if np.ptp(differences) > 0:
        interval = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=100,  # all at once would hold every resample of every image in memory
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    both, neither = int(np.sum(first & second)), int(np.sum(~first & ~second))
    test: Any = mcnemar([[both, only_first], [only_second, neither]], exact=True)
    p_value = min(1.0, float(test.pvalue))
    return Paired(float(differences.mean()), low, high, confidence, only_first, only_second, p_value)


def paired_by_class(
    labels: Integers,
    first: Integers,
    second: Integers,
    score: Literal["balanced_accuracy", "macro_f1"],
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Paired:
    """Compare two models' predicted classes for the same images, `(N,)` each, by a score that is a mean over classes.

    The interval is the percentile bootstrap over images (Efron and Tibshirani, 1993). The scores depend only on how
    often each label meets each pair of predicted classes. So these counts are drawn instead of the images, which gives
    the same and is faster.
    """
    cases, counts = np.unique(np.stack([labels, first, second]), axis=1, return_counts=True)  # (3, K), (K,)
    drawn = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), RESAMPLES)  # (R, K)

    def scored(counts, predicted):
        classes = np.unique(labels)
        true, named = cases[0][:, None] == classes, predicted[:, None] == classes  # (K, C)
        hits, total, answers = counts @ (true & named), counts @ true, counts @ named
        with np.errstate(invalid="ignore"):  # a class may be missing from a resample
            by_class = hits / total if score == "balanced_accuracy" else 2 * hits / (total + answers)
        return np.nanmean(np.where(total > 0, by_class, np.nan), axis=-1)

    differences = scored(drawn, cases[1]) - scored(drawn, cases[2])
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    difference = float(scored(counts, cases[1]) - scored(counts, cases[2]))
    only_first = int(np.sum((first == labels) & (second != labels)))
    only_second = int(np.sum((first != labels) & (second == labels)))
    return Paired(difference, float(low), float(high), confidence, only_first, only_second, p_value=None)


def calibration(probabilities: Floats, labels: Integers) -> Calibration:
    """Compare how sure a model is of its predictions, probabilities `(N, num_classes)`, with how often they are right.

    Returns:
        `(confidence, accuracy, count, error)`: mean confidence and accuracy of each of 15 equal bins of the highest
        probability (NaN where empty) and the number of images in it, each `(15,)`; and the expected calibration error,
        the mean gap weighted by the counts (Naeini et al., 2015; bins as in Guo et al., 2017, arXiv:1706.04599).
    """
    from scipy.stats import binned_statistic

    highest = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    edges: Any = np.linspace(0, 1, BINS + 1)
    confidence, accuracy = binned_statistic(highest, [highest, right], "mean", bins=edges).statistic
    count = binned_statistic(highest, None, "count", bins=edges).statistic.astype(int)
    filled = count > 0
    error = float(np.sum(np.abs(confidence - accuracy)[filled] * count[filled]) / len(labels))
    return confidence, accuracy, count, error
