"""`ImageDataset`, an image data set of three splits, and the digests that tell one from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnlab.errors import ArgumentError

if TYPE_CHECKING:  # the command line answers without NumPy
    import numpy as np
    import numpy.typing as npt

    from cnnlab.data.disk_rows import MappedRows
    from cnnlab.data.pictures import Pictures
    from cnnlab.data.summary import DatasetSummary

    Images = npt.NDArray[np.uint8] | MappedRows


@dataclass(frozen=True)
class Split:
    """Hold the images and labels of the training, validation or test set.

    Attributes:
        images: `(N, side, side, 3) uint8`, `MappedRows` where they are too large for memory.
        labels: `(N,) int64`.
        digest: sha256 of the class names, the images and the labels: what a model computes with.
        identity: sha256 of the class names, the originals (each file, or of a built-in set the images before they were
            resized) and the labels: which pictures they are, at any size. The digest where it is not given.
    """

    images: Images = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    digest: str
    identity: str = ""

    def __post_init__(self) -> None:
        import numpy as np

        labels = np.asarray(self.labels)  # also pandas' Series
        if labels.ndim != 1 or labels.dtype.kind not in "iuf" or (labels != (whole := labels.astype(np.int64))).any():
            raise ArgumentError(
                "Expected labels (N,) to be whole numbers, the positions of their classes in class_names. "
                f"Received: {labels.dtype} {labels.shape}."
            )
        object.__setattr__(self, "labels", whole)
        object.__setattr__(self, "identity", self.identity or self.digest)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageDataset:
    """Hold the three splits of an image data set, and what tells it from others.

    Attributes:
        name: short name; a folder's own name.
        source: what the data is, however it is split or limited: "keras.datasets/cifar10", "sklearn/digits", or
            "folder/" and a hash of the files' names and sizes. Runs with different sources never share an experiment.
        class_names: the class of each label, in label order.
        train, val, test: the splits; with `val_fraction=0` the validation set is the test set itself.
        digest: sha256 of class names, images and labels of the training set before the validation split, and of the
            test set, so that it does not change with `val_fraction`.
        identity: as `digest`, of the originals in place of the images; it does not change with their size either.
        stands_in_for: the name of the data set that could not be downloaded, when this is its embedded stand-in.
        summary: what is reported about the data: sizes, classes, what was left out, and how a folder was understood.
        resize_mode, grey_range: how the pictures of a folder were decoded, as in `decode_image`.
        pictures: all pictures with their files and splits, of a folder and for an audit.
        apportioned: whether small classes have no picture in a split that was held out, as in `hold_out`.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str
    identity: str = ""
    stands_in_for: str | None = None
    summary: DatasetSummary | None = None
    resize_mode: str | None = None
    grey_range: tuple[float, float] | None = None
    pictures: Pictures | None = field(default=None, repr=False)
    apportioned: bool = False

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return the shape of one image, `(side, side, 3)`."""
        return self.train.images.shape[1:]

    @property
    def val_is_test(self) -> bool:
        """Return whether the validation set is the test set itself."""
        return self.val is self.test


class Part(NamedTuple):
    """A split before its digests are known: images, `(N, ...)` originals (digests of files, or arrays), labels."""

    images: Images
    originals: npt.NDArray[Any] | Images
    labels: npt.NDArray[np.int64]

    def select(self, index: npt.NDArray[np.int64]) -> Part:
        """Return some of the pictures."""
        from cnnlab.data.disk_rows import MappedRows

        images = self.images.select(index) if isinstance(self.images, MappedRows) else self.images[index]
        return Part(images, images if self.are_originals else self.originals[index], self.labels[index])

    @property
    def are_originals(self) -> bool:
        """Return whether the images were not resized, so that they need not be copied and hashed twice."""
        return self.images is self.originals


def digests_of(class_names: Sequence[str], *parts: Part, by_row: bool = True) -> tuple[str, str]:
    """Return the digest and the identity of one or several parts, as in `Split`."""
    from cnnlab.data.splitting import dataset_digest

    images = (array for part in parts for array in (part.images, part.labels))
    digest = dataset_digest(class_names, *images, by_row=by_row)
    if all(part.are_originals for part in parts):
        return digest, digest
    originals = (array for part in parts for array in (part.originals, part.labels))
    return digest, dataset_digest(class_names, *originals)


def make_splits(
    class_names: Sequence[str], splits: Mapping[str, Part], by_row: bool = True
) -> tuple[Split, Split, Split]:
    """Make the training, validation and test `Split` of parts; the test set may be the validation set."""
    made = {
        split: Split(part.images, part.labels, *digests_of(class_names, part, by_row=by_row))
        for split, part in splits.items()
    }
    return made["train"], made.get("val", made["test"]), made["test"]
