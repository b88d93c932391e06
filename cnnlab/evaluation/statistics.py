"""What test predictions say about one model and about two: intervals, paired tests, calibration."""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
BINS = 15


@dataclass(frozen=True)
class Paired:
    """Two models on the same images.

    Attributes:
        difference: score of the first minus that of the second, 0..1.
        low, high: its bootstrap interval.
        confidence: of the interval.
        only_first, only_second: images that only one of them gets right.
        p_value: of McNemar's exact test that both err equally often; `None` for a score that is no share of images.
    """

    difference: float
    low: float
    high: float
    confidence: float
    only_first: int
    only_second: int
    p_value: float | None

    def in_words(self, first, second) -> str:
        """The verdict: which one is better, or that the difference is within noise."""
        method = "paired bootstrap" + ("" if self.p_value is None else f", McNemar p = {self.p_value:.2g}")
        return in_words(first, second, self.difference, self.low, self.high, self.confidence, method)


def in_words(first, second, difference, low, high, confidence, method) -> str:
    """The verdict on two models: which is better, or that the difference is within noise.

    Args:
        first, second: names.
        difference, low, high: accuracy of the first minus that of the second, and its interval, 0..1.
        confidence: of the interval.
        method: how it was found.
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


def wilson_interval(correct, total) -> tuple[float, float]:
    """The interval of an accuracy of `correct` of `total` images (Wilson, 1927, JASA 22; statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(int(correct), int(total), alpha=1 - CONFIDENCE, method="wilson")
    return float(low), float(high)


def mean_interval(scores) -> tuple[float, float, float]:
    """Mean and interval of the mean of at least two seeds' scores, 0..1 (Student's t, as the seeds are few; SciPy).

    Returns:
        `(mean, low, high)`.
    """
    from scipy import stats

    scores = np.asarray(scores, float)
    mean = float(scores.mean())
    error = stats.sem(scores)
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(scores) - 1, loc=mean, scale=error)
    return mean, max(0.0, float(low)), min(1.0, float(high))


def seeds_difference(first, second, confidence=CONFIDENCE) -> tuple[float, float, float]:
    """The difference of two models' mean scores over seeds, at least two each (Welch's t interval, 1947; SciPy).

    It says how much the seeds matter; that the test images are a sample, it does not know.

    Returns:
        `(difference, low, high)`.
    """
    from scipy import stats

    difference = float(np.mean(first) - np.mean(second))
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return difference, difference, difference
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
    return difference, float(interval.low), float(interval.high)


def paired(first, second, confidence=CONFIDENCE, seed=0) -> Paired:
    """Compare two models' predictions on the same images.

    The interval is the percentile bootstrap over images of the difference in accuracy (Efron and Tibshirani, 1993;
    `scipy.stats.bootstrap`); the test is McNemar's exact one on the images that one model gets right and the other
    wrong (McNemar, 1947; recommended for one training of each by Dietterich, 1998; statsmodels).

    Args:
        first, second: whether each image is named right, `(N,) bool`.
        confidence: of the interval.
        seed: of the bootstrap.
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
    p_value = mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue
    return Paired(
        difference=float(differences.mean()),
        low=low,
        high=high,
        confidence=confidence,
        only_first=only_first,
        only_second=only_second,
        p_value=min(1.0, float(p_value)),
    )


def paired_by_class(labels, first, second, score, confidence=CONFIDENCE, seed=0) -> Paired:
    """Compare two models' predictions on the same images by a score that is a mean over classes.

    The interval is the percentile bootstrap over images (Efron and Tibshirani, 1993). Since the scores only depend on
    how often each label meets each pair of answers, those counts are drawn, which is the same and takes no pass over
    the images.

    Args:
        labels: `(N,)` integers.
        first, second: predicted classes, `(N,)` integers.
        score: "balanced_accuracy" or "macro_f1".
        confidence: of the interval.
        seed: of the bootstrap.
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
    return Paired(
        difference=float(scored(counts, cases[1]) - scored(counts, cases[2])),
        low=float(low),
        high=float(high),
        confidence=confidence,
        only_first=int(np.sum((first == labels) & (second != labels))),
        only_second=int(np.sum((first != labels) & (second == labels))),
        p_value=None,
    )


def calibration(probabilities, labels):
    """How often the model is right when it says so with a given confidence.

    Args:
        probabilities: `(N, num_classes)`.
        labels: `(N,)` integers.

    Returns:
        `(confidence, accuracy, count, error)`: mean confidence and accuracy of each of 15 equal bins of the highest
        probability (NaN where empty) and the number of images in it, each `(15,)`; and the expected calibration error,
        the mean gap weighted by the counts (Naeini et al., 2015; bins as in Guo et al., 2017, arXiv:1706.04599).
    """
    from scipy.stats import binned_statistic

    highest = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    edges = np.linspace(0, 1, BINS + 1)
    confidence, accuracy = binned_statistic(highest, [highest, right], "mean", bins=edges).statistic
    count = binned_statistic(highest, None, "count", bins=edges).statistic.astype(int)
    filled = count > 0
    error = float(np.sum(np.abs(confidence - accuracy)[filled] * count[filled]) / len(labels))
    return confidence, accuracy, count, error
