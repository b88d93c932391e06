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
        difference: accuracy of the first minus that of the second, 0..1.
        low, high: its bootstrap interval.
        only_first, only_second: images that only one of them gets right.
        p_value: of McNemar's exact test that both err equally often.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    def in_words(self, first, second) -> str:
        """The verdict: which one is better, or that the difference is within noise."""
        points = f"{100 * abs(self.difference):.1f} points"
        low, high = sorted((abs(100 * self.low), abs(100 * self.high)))
        if self.low <= 0 <= self.high:
            return (
                f"{first} and {second} differ by {points}, which is within noise "
                f"({100 * self.low:+.1f} to {100 * self.high:+.1f} at {CONFIDENCE:.0%}, McNemar p = {self.p_value:.2g})"
            )
        better, worse = (first, second) if self.difference > 0 else (second, first)
        return (
            f"{better} is better than {worse} by {points} "
            f"({low:.1f} to {high:.1f} at {CONFIDENCE:.0%}, McNemar p = {self.p_value:.2g})"
        )


def wilson_interval(correct, total) -> tuple[float, float]:
    """The interval of an accuracy of `correct` of `total` images (Wilson, 1927, JASA 22; statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(int(correct), int(total), alpha=1 - CONFIDENCE, method="wilson")
    return float(low), float(high)


def mean_interval(scores) -> tuple[float, float, float]:
    """Mean and interval of the mean of at least two seeds' scores (Student's t, as the seeds are few; SciPy).

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
    return mean, float(low), float(high)


def paired(first, second, labels, seed=0) -> Paired:
    """Compare two models' predictions on the same images.

    The interval is the percentile bootstrap over images of the difference in accuracy (Efron and Tibshirani, 1993;
    `scipy.stats.bootstrap`); the test is McNemar's exact one on the images that one model gets right and the other
    wrong (McNemar, 1947; recommended for one training of each by Dietterich, 1998; statsmodels).

    Args:
        first, second: probabilities `(N, num_classes)`.
        labels: `(N,)` integers.
        seed: of the bootstrap.
    """
    from scipy import stats
    from statsmodels.stats.contingency_tables import mcnemar

    right = [np.argmax(probabilities, axis=1) == labels for probabilities in (first, second)]
    differences = right[0].astype(float) - right[1]  # (N,) float64: -1, 0 or 1
    low = high = float(differences.mean())
    if np.ptp(differences) > 0:
        interval = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=100,  # all at once would hold every resample of every image in memory
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    only_first, only_second = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    both, neither = int(np.sum(right[0] & right[1])), int(np.sum(~right[0] & ~right[1]))
    p_value = mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue
    return Paired(float(differences.mean()), low, high, only_first, only_second, min(1.0, float(p_value)))


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
