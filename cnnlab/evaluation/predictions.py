"""A model's predictions on one part of a data set: what scores, figures, comparisons and promotions work from."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab.errors import ArgumentError, reading
from cnnlab.evaluation import statistics
from cnnlab.evaluation.score_names import SCORES, TOP5_CLASSES
from cnnlab.utils.text import csv_line

PREDICTIONS_FILE = "predictions.npz"
EXPANSION, SMALL = 100, 2**26  # times that predictions may be larger than their file, beyond so many bytes


def balanced_accuracy(labels, predicted) -> float:
    """Mean recall of the classes that there are among the labels, `(N,)` integers."""
    from sklearn.metrics import recall_score

    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


def macro_f1(labels, predicted) -> float:
    """Mean F1 of the classes that there are among the labels, `(N,)` integers."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


@dataclass(frozen=True)
class Predictions:
    """What a finished model says of the images of one part, in their order.

    Attributes:
        probabilities: `(N, num_classes) float32`.
        labels: `(N,) int64`, the true classes.
        digest: sha256 of the class names, images and labels; two models are compared on the same images or not at all.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    digest: str

    @property
    def predicted(self) -> np.ndarray:
        """`(N,) int64`: the most probable class of each image."""
        return self.probabilities.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """`(N,) bool`: whether the most probable class is the true one."""
        return self.predicted == self.labels

    @property
    def confusion(self) -> np.ndarray:
        """`(num_classes, num_classes)` counts, rows true and columns predicted."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=np.arange(self.probabilities.shape[1]))

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes of the share that is named right (scikit-learn)."""
        return balanced_accuracy(self.labels, self.predicted)

    @property
    def macro_f1(self) -> float:
        """Mean over the classes that there are of F1, the harmonic mean of precision and recall (scikit-learn)."""
        return macro_f1(self.labels, self.predicted)

    @property
    def top5_accuracy(self) -> float | None:
        """Share of images whose class is among the five most probable; `None` for fewer than ten classes."""
        hits = self.in_top5
        return None if hits is None else float(hits.mean())

    @property
    def in_top5(self) -> np.ndarray | None:
        """`(N,) bool`: whether the true class is among the five most probable; `None` for fewer than ten classes."""
        if self.probabilities.shape[1] < TOP5_CLASSES:
            return None
        return (np.argsort(-self.probabilities, axis=1, kind="stable")[:, :5] == self.labels[:, None]).any(axis=1)

    @property
    def scores(self) -> dict[str, float]:
        """All figures by name, of `SCORES`, that there are for so many classes."""
        scores = {name: getattr(self, name) for name in SCORES}
        return {name: value for name, value in scores.items() if value is not None}

    @property
    def by_class(self):
        """`(precision, recall, f1, count)`, each `(num_classes,)`; NaN where there is nothing to divide by."""
        from sklearn.metrics import precision_recall_fscore_support

        classes = np.arange(self.probabilities.shape[1])
        return precision_recall_fscore_support(self.labels, self.predicted, labels=classes, zero_division=np.nan)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return statistics.wilson_interval(self.right.sum(), len(self.labels))

    @property
    def loss(self) -> float:
        """Mean crossentropy."""
        import keras

        losses = keras.losses.sparse_categorical_crossentropy(self.labels, self.probabilities)
        return float(np.mean(keras.ops.convert_to_numpy(losses)))


def compared(first, second, by="accuracy") -> statistics.Paired:
    """Two models on the same images by one of `SCORES`.

    Raises:
        ArgumentError: that score takes more classes.
    """
    if by == "accuracy":
        return statistics.paired(first.right, second.right)
    if by == "top5_accuracy":
        if first.in_top5 is None:
            raise ArgumentError(
                f"Expected at least {TOP5_CLASSES} classes for top5_accuracy. Received: "
                f"{first.probabilities.shape[1]}. Compare by another score."
            )
        return statistics.paired(first.in_top5, second.in_top5)
    return statistics.paired_by_class(first.labels, first.predicted, second.predicted, by)


def save_predictions(path, class_names, **parts) -> None:
    """Write the `Predictions` of several parts, by name, to one npz file."""
    arrays = {"class_names": np.array(class_names)}
    for name, part in parts.items():
        arrays |= {f"{name}_{field}": value for field, value in vars(part).items()}
    np.savez_compressed(path, **arrays)


def load_predictions(path) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    """`(class_names, parts)` as `save_predictions` wrote them.

    Raises:
        LabError: the file holds something else.
    """
    with reading(f"'{Path(path).name}' to hold predictions", "Restore the store's artifacts, or train again."):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > max(SMALL, EXPANSION * Path(path).stat().st_size):
                raise ValueError(f"it unpacks to {size:,} bytes")
        with np.load(path) as arrays:
            class_names = tuple(map(str, arrays["class_names"].tolist()))
            return class_names, {name: _checked(name, arrays, len(class_names)) for name in ("test", "val")}


def _checked(name, arrays, num_classes):
    probabilities, labels = arrays[f"{name}_probabilities"], arrays[f"{name}_labels"]
    if probabilities.shape != (len(labels), num_classes) or labels.ndim != 1 or not len(labels):
        raise ValueError(f"shapes {probabilities.shape} and {labels.shape} for {num_classes} classes")
    if probabilities.dtype.kind != "f" or labels.dtype.kind not in "iu":
        raise ValueError(f"types {probabilities.dtype} and {labels.dtype}")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {num_classes} classes")
    return Predictions(probabilities, labels, str(arrays[f"{name}_digest"]))


def describe(model_name, class_names, images, test):
    """What the test predictions of one model show.

    Args:
        model_name: for the figures.
        class_names: of the labels.
        images: `(N, H, W, 3) uint8`, those of `test`.
        test: `Predictions`.

    Returns:
        `(figures, texts)` by artifact path.
    """
    from cnnlab.evaluation import plots

    names, matrix = class_names, test.confusion
    precision, recall, f1, count = test.by_class
    wrong, captions = confident_mistakes(test, names, 24)
    lines = [("class", "test_images", "precision", "recall", "f1")]
    for row in zip(names, count, precision, recall, f1, strict=True):
        lines.append((*row[:2], *(f"{value:.4f}" for value in row[2:])))
    figures = {
        "confusion_matrix.png": plots.confusion_matrices({model_name: matrix}, names),
        "class_scores.png": plots.class_scores(precision, recall, names),
        "mistakes.png": plots.image_grid(images[wrong], captions, "Most confident mistakes"),
    }
    return figures, {"class_scores.csv": "".join(map(csv_line, lines))}


def confident_mistakes(predictions, class_names, count):
    """Positions of at most `count` images that are named wrong, the most confident mistake first, and captions."""
    labels, predicted, confidence = predictions.labels, predictions.predicted, predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(~predictions.right)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return wrong, [f"{class_names[predicted[i]]} {confidence[i]:.0%}\nis {class_names[labels[i]]}" for i in wrong]
