"""A model's predictions on one part of a data set: what scores, figures, comparisons and promotions work from."""

from dataclasses import dataclass

import numpy as np

from cnnlab.results import evidence

PREDICTIONS_FILE = "predictions.npz"


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
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return evidence.wilson_interval(self.right.sum(), len(self.labels))

    @property
    def loss(self) -> float:
        """Mean crossentropy."""
        import keras

        losses = keras.losses.sparse_categorical_crossentropy(self.labels, self.probabilities)
        return float(np.mean(keras.ops.convert_to_numpy(losses)))


def save_predictions(path, class_names, **parts) -> None:
    """Write the `Predictions` of several parts, by name, to one npz file."""
    arrays = {"class_names": np.array(class_names)}
    for name, part in parts.items():
        arrays |= {f"{name}_{field}": value for field, value in vars(part).items()}
    np.savez_compressed(path, **arrays)


def load_predictions(path) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    """`(class_names, parts)` as `save_predictions` wrote them."""
    with np.load(path) as arrays:
        parts = {
            name: Predictions(arrays[f"{name}_probabilities"], arrays[f"{name}_labels"], str(arrays[f"{name}_digest"]))
            for name in ("test", "val")
        }
        return tuple(arrays["class_names"].tolist()), parts


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
    from cnnlab.results import plots

    labels, names = test.labels, class_names
    predicted, matrix = test.predicted, test.confusion
    with np.errstate(invalid="ignore"):
        by_class = matrix.diagonal() / matrix.sum(axis=1)  # (C,) float64, NaN where the test set lacks the class
    confidence = test.probabilities.max(axis=1)
    wrong = np.flatnonzero(~test.right)
    wrong = wrong[np.argsort(-confidence[wrong])][:24]
    captions = [f"{names[predicted[i]]} {confidence[i]:.0%}\nis {names[labels[i]]}" for i in wrong]
    accuracy_rows = [
        f"{name},{count},{value:.4f}" for name, count, value in zip(names, matrix.sum(1), by_class, strict=True)
    ]
    figures = {
        "confusion_matrix.png": plots.confusion_matrices({model_name: matrix}, names),
        "class_accuracy.png": plots.class_accuracy(by_class, names),
        "mistakes.png": plots.image_grid(images[wrong], captions, "Most confident mistakes"),
    }
    return figures, {"class_accuracy.csv": "\n".join(["class,test_images,accuracy", *accuracy_rows, ""])}
