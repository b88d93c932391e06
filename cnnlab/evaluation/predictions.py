"""Hold, score, store and describe a model's predictions on one split of a data set."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from cnnlab.errors import ArgumentError, reading
from cnnlab.evaluation import statistics
from cnnlab.evaluation.score_names import SCORES, TOP5_CLASSES
from cnnlab.utils.text import csv_line

if TYPE_CHECKING:
    from cnnlab.data.image_dataset import Images, Split

PREDICTIONS_FILE = "predictions.npz"
MOST_EXPANSION, SMALL = 100, 2**26  # times that predictions may be larger than their file, above this many bytes
Score: TypeAlias = Literal["accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy"]


@dataclass(frozen=True)
class Predictions:
    """The predictions of a finished model for the images of one split, in their order.

    Attributes:
        probabilities: `(N, num_classes)`.
        labels: `(N,)`, the true classes.
        digest, identity: as in `data.image_dataset.Split`; runs of earlier versions have no identity.
    """

    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    digest: str
    identity: str = ""

    def shares_images(self, other: Predictions | Split) -> bool | None:
        """Return whether two models saw the same images, at whatever size, in the same order.

        Two models are compared on the same images or not at all.

        Returns:
            `None` where the files of the images would tell, and those of an earlier version are not known.
        """
        if self.digest == other.digest:
            return True
        if not np.array_equal(self.labels, other.labels):
            return False
        return self.identity == other.identity if self.identity and other.identity else None

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The most probable class of each image, `(N,)`."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the most probable class of each image is the true one, `(N,)`."""
        return self.predicted == self.labels

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """The confusion matrix: `(num_classes, num_classes)` counts, rows true and columns predicted."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=np.arange(self.probabilities.shape[1]))

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the true one."""
        return float(self.right.mean())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur (scikit-learn)."""
        from sklearn.metrics import recall_score

        return float(recall_score(self.labels, self.predicted, labels=np.unique(self.labels), average="macro"))

    @property
    def macro_f1(self) -> float:
        """Mean over the classes that occur of F1, the harmonic mean of precision and recall (scikit-learn)."""
        from sklearn.metrics import f1_score

        how: Any = {"labels": np.unique(self.labels), "average": "macro", "zero_division": 0}
        return float(f1_score(self.labels, self.predicted, **how))

    @property
    def top5_accuracy(self) -> float | None:
        """Share of images whose class is among the five most probable; `None` for fewer than ten classes."""
        hits = self.in_top5
        return None if hits is None else float(hits.mean())

    @property
    def in_top5(self) -> npt.NDArray[np.bool_] | None:
        """Whether the true class of each image is among the five most probable, `(N,)`; `None` below ten classes."""
        if self.probabilities.shape[1] < TOP5_CLASSES:
            return None
        return (np.argsort(-self.probabilities, axis=1, kind="stable")[:, :5] == self.labels[:, None]).any(axis=1)

    @property
    def scores(self) -> dict[str, float]:
        """All of `SCORES` that are defined for this number of classes, by name."""
        scores = {name: getattr(self, name) for name in SCORES}
        return {name: value for name, value in scores.items() if value is not None}

    @property
    def by_class(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Precision, recall, F1 and number of images by class, each `(num_classes,)`; NaN for a division by zero."""
        from sklearn.metrics import precision_recall_fscore_support

        classes, nan = np.arange(self.probabilities.shape[1]), cast("str", np.nan)
        scores = precision_recall_fscore_support(self.labels, self.predicted, labels=classes, zero_division=nan)
        return cast("tuple[npt.NDArray[np.float64], ...]", scores)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy, `(low, high)`."""
        return statistics.wilson_interval(int(self.right.sum()), len(self.labels))

    @property
    def loss(self) -> float:
        """Mean crossentropy."""
        import keras

        losses = keras.losses.sparse_categorical_crossentropy(self.labels, self.probabilities)
        return float(np.mean(np.asarray(keras.ops.convert_to_numpy(losses))))


def compared(first: Predictions, second: Predictions, by: Score = "accuracy") -> statistics.Paired:
    """Compare two models' predictions on the same images; raise `ArgumentError` where they have no such score."""
    if by == "accuracy":
        return statistics.paired(first.right, second.right)
    if by == "top5_accuracy":
        if first.in_top5 is None or second.in_top5 is None:
            raise ArgumentError(
                f"Expected at least {TOP5_CLASSES} classes for top5_accuracy. Received: "
                f"{first.probabilities.shape[1]}. Compare by another score."
            )
        return statistics.paired(first.in_top5, second.in_top5)
    return statistics.paired_by_class(first.labels, first.predicted, second.predicted, by)


def save_predictions(path: str | os.PathLike[str], class_names: tuple[str, ...], **splits: Predictions) -> None:
    """Write the predictions of several splits, by name, to one npz file."""
    arrays: dict[str, Any] = {"class_names": np.array(class_names)}
    for name, predictions in splits.items():
        arrays |= {f"{name}_{field}": value for field, value in vars(predictions).items()}
    np.savez_compressed(path, **arrays)


def load_predictions(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    """Read the class names and the predictions by split, "test" and "val", that `save_predictions` wrote.

    Raises:
        LabError: the file holds something else.
    """
    with reading(f"'{Path(path).name}' to hold predictions", "Restore the store's artifacts, or train again."):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > max(SMALL, MOST_EXPANSION * Path(path).stat().st_size):
                raise ValueError(f"it unpacks to {size:,} bytes")
        with np.load(path) as arrays:
            class_names = tuple(map(str, arrays["class_names"].tolist()))
            return class_names, {name: _checked(name, arrays, len(class_names)) for name in ("test", "val")}


def _checked(name: str, arrays: Mapping[str, Any], num_classes: int) -> Predictions:
    probabilities, labels = arrays[f"{name}_probabilities"], arrays[f"{name}_labels"]
    if probabilities.shape != (len(labels), num_classes) or labels.ndim != 1 or not len(labels):
        raise ValueError(f"shapes {probabilities.shape} and {labels.shape} for {num_classes} classes")
    if probabilities.dtype.kind != "f" or labels.dtype.kind not in "iu":
        raise ValueError(f"types {probabilities.dtype} and {labels.dtype}")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {num_classes} classes")
    return Predictions(probabilities, labels, str(arrays[f"{name}_digest"]), str(arrays.get(f"{name}_identity", "")))


def describe(
    model_name: str, class_names: tuple[str, ...], images: Images, test: Predictions
) -> tuple[dict[str, Any], dict[str, str]]:
    """Draw confusion matrix, scores by class and worst mistakes on the test images: figures and texts by path."""
    from cnnlab.evaluation import plots

    precision, recall, f1, count = test.by_class
    wrong, captions = confident_mistakes(test, class_names, 24)
    lines: list[tuple[Any, ...]] = [("class", "test_images", "precision", "recall", "f1")]
    for row in zip(class_names, count, precision, recall, f1, strict=True):
        lines.append((*row[:2], *(f"{value:.4f}" for value in row[2:])))
    figures = {
        "confusion_matrix.png": plots.confusion_matrices({model_name: test.confusion}, class_names),
        "class_scores.png": plots.class_scores(precision, recall, class_names),
        "mistakes.png": plots.image_grid(images[wrong], captions, "Most confident mistakes"),
    }
    return figures, {"class_scores.csv": "".join(map(csv_line, lines))}


def confident_mistakes(
    predictions: Predictions, class_names: tuple[str, ...], count: int
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return positions and captions of at most `count` wrongly predicted images, the most confident mistake first."""
    labels, predicted, confidence = predictions.labels, predictions.predicted, predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(~predictions.right)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return wrong, [f"{class_names[predicted[i]]} {confidence[i]:.0%}\nis {class_names[labels[i]]}" for i in wrong]
