"""Pictures that are not what their class says, or not like the rest of it, by the features of a frozen network."""

import warnings
from dataclasses import dataclass, replace

import numpy as np

DIRECTIONS = 256
FOLDS = 5
STRENGTH = 0.01  # inverse of the head's L2 penalty: on 1,360 flowers and 20,000 pictures of CIFAR-10 among the best
STEPS = 100  # of the head's optimizer
NEIGHBOURS = 10  # as in cleanlab's OutOfDistribution


@dataclass(frozen=True)
class LabelCheck:
    """What cross-validated predictions say of the labels.

    Attributes:
        probabilities: `(N, C) float64`, NaN for pictures of classes that were not checked.
        suspects: positions of the likely errors, the most suspicious first.
        agreement: share of the checked labels that the predictions agree with.
        rare: labels of the classes with too few pictures to be checked.
    """

    probabilities: np.ndarray
    suspects: np.ndarray
    agreement: float
    rare: tuple[int, ...]

    def at(self, positions, total) -> "LabelCheck":
        """The check of pictures that are some of `total`, at these positions."""
        probabilities = np.full((total, self.probabilities.shape[1]), np.nan)
        probabilities[positions] = self.probabilities
        return replace(self, probabilities=probabilities, suspects=positions[self.suspects])

    @property
    def suggested(self) -> np.ndarray:
        """`(N,)` the most probable class of each; 0 for those that were not checked."""
        return np.nan_to_num(self.probabilities).argmax(axis=1)


def compact(features) -> np.ndarray:
    """Features `(N, D) float32` standardised, in their 256 directions of most variance: a fifth of the work later on,
    and as much found.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    if len(features) < 2:  # no variance
        return features
    directions = PCA(min(DIRECTIONS, *features.shape), svd_solver="covariance_eigh")
    return directions.fit_transform(StandardScaler().fit_transform(features))


def check_labels(features, labels, classes, seed=0) -> LabelCheck | None:
    """Find likely label errors by confident learning (Northcutt, Jiang and Chuang, 2021, arXiv:1911.00068).

    Each picture is named by a logistic regression that was fitted to four fifths of the others. cleanlab estimates how
    many labels are wrong; so many of those with the lowest probability of their own label are the suspects.

    Args:
        features: `(N, D) float32`, as `compact` gives them.
        labels: `(N,) int64`.
        classes: how many there are.
        seed: of the folds.

    Returns:
        `None` where fewer than two classes have a picture for each fold.
    """
    from cleanlab.filter import find_label_issues  # takes seconds
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    counts = np.bincount(labels, minlength=classes)
    common = np.flatnonzero(counts >= FOLDS)
    if len(common) < 2:
        return None
    checked = np.flatnonzero(np.isin(labels, common))
    given = np.searchsorted(common, labels[checked])  # without gaps, as cleanlab wants them
    head = LogisticRegression(C=STRENGTH, max_iter=STEPS)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is enough
        predicted = cross_val_predict(head, features[checked], given, cv=folds, method="predict_proba")
    predicted = predicted.astype("float64")
    suspects = find_label_issues(
        given,
        predicted,
        filter_by="low_self_confidence",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,  # processes would be forked from one in which TensorFlow has threads
    )
    suspects = suspects[predicted[suspects].argmax(axis=1) != given[suspects]]
    probabilities = np.full((len(labels), classes), np.nan)
    probabilities[np.ix_(checked, common)] = predicted
    probabilities[checked] = np.nan_to_num(probabilities[checked])
    agreement = float((predicted.argmax(axis=1) == given).mean())
    rare = np.flatnonzero((counts > 0) & (counts < FOLDS))
    return LabelCheck(probabilities, checked[suspects], agreement, tuple(rare.tolist()))


def strangeness(features, labels) -> np.ndarray:
    """How far each picture is from the most similar ones of its class.

    Args:
        features: `(N, D) float32`, as `compact` gives them.
        labels: `(N,) int64`.

    Returns:
        `(N,)` mean cosine distance to the ten nearest of the class (Kuan and Mueller, 2022, arXiv:2207.03061), of a
        small class to all others; NaN in a class of one or two.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    distances = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < 3:
            continue
        # Of rows of length 1, half the squared Euclidean distance is the cosine's, and is found faster.
        rows = normalize(features[positions])
        nearest, _ = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(positions) - 1)).fit(rows).kneighbors()
        distances[positions] = (nearest**2 / 2).mean(axis=1)
    return distances
