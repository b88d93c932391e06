"""Image sets: by name or from a folder, as uint8 arrays in three parts, with class names and digests."""

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cnnlab.errors import ArgumentError, LabError

if TYPE_CHECKING:  # the command line asks for names only, and answers without NumPy
    import numpy as np


@dataclass(frozen=True)
class ImagePart:
    """The training, validation or test images.

    Attributes:
        images: `(N, picture_size, picture_size, 3) uint8`.
        labels: `(N,) int64`.
        digest: sha256 of the class names, the images and the labels.
    """

    images: "np.ndarray" = field(repr=False)
    labels: "np.ndarray" = field(repr=False)
    digest: str

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels in three parts, with what is needed to tell one data set from another.

    Attributes:
        name: short name; a folder's own name.
        source: what the data is, whatever part of it is used: "keras.datasets/cifar10", "sklearn/digits", or
            "folder/" and a hash of the files' names and sizes. Runs with different sources never share an experiment.
        class_names: the class of each label, in label order.
        train, val, test: `ImagePart`s; with `val_fraction=0` the validation part is the test part itself.
        digest: sha256 of class names, images and labels of the training set before the validation split, and of the
            test set, so that it does not change with `val_fraction`.
        stands_in_for: the name of the data set that could not be had, when this is its embedded stand-in.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: ImagePart
    val: ImagePart
    test: ImagePart
    digest: str
    stands_in_for: str | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(picture_size, picture_size, 3)`."""
        return self.train.images.shape[1:]

    @property
    def val_is_test(self) -> bool:
        """Whether the validation part is the test set itself."""
        return self.val is self.test


def load_dataset(name_or_folder=None, *, image_size=32, val_fraction=0.1, limit=None, seed=0) -> ImageDataset:
    """Load an image set by name or from a folder.

    Args:
        name_or_folder: "cifar10", "cifar100", "mnist", "fashion_mnist" (through `keras.datasets`), "digits" (from
            scikit-learn), or a folder with `train/<class>/*` and `test/<class>/*`, or with class folders only, of
            which a seeded stratified fifth becomes the test set. `None` is "cifar10", or "digits" with a warning
            where that cannot be downloaded.
        image_size: images are stretched to this many pixels a side; grey images become RGB.
        val_fraction: share of the training set held out, stratified; 0 validates on the test set.
        limit: use at most this many training images, and test images in proportion, both stratified.
        seed: of the splits.

    Raises:
        ArgumentError: an unknown name, a missing or unusable folder, a split or limit too small for the classes.
        LabError: a corrupt image, or data that was named and cannot be downloaded.
    """
    from cnnlab.data import folders, named

    if not 0 <= val_fraction < 1:
        raise ArgumentError(f"Expected val_fraction to be at least 0 and below 1. Received: {val_fraction}.")
    if name_or_folder is not None and named.is_folder(str(name_or_folder)):
        name, source, class_names, train, test = folders.load_folder(name_or_folder, image_size, limit=limit, seed=seed)
        return _in_parts(name, source, class_names, train, test, val_fraction, seed)

    name = name_or_folder or named.DEFAULT_DATASET
    try:
        return _in_parts(*named.load_named(name, image_size, limit=limit, seed=seed), val_fraction, seed)
    except LabError as error:
        if name_or_folder is not None or isinstance(error, ArgumentError):
            raise
    print(
        f"warning: {name} cannot be downloaded; using the embedded {named.STAND_IN} instead "
        "(name --dataset to choose).",
        file=sys.stderr,
    )
    stand_in = _in_parts(*named.load_named(named.STAND_IN, image_size, limit=limit, seed=seed), val_fraction, seed)
    return replace(stand_in, stands_in_for=name)


def _in_parts(name, source, class_names, train, test, val_fraction, seed):
    """The data set of `(images, labels)` for training and test, with a share of the training set held out."""
    from cnnlab.data.splits import digest_of, stratified_split

    class_names = tuple(class_names)
    digest = digest_of(class_names, *train, *test)

    def part(images, labels):
        return ImagePart(images, labels, digest_of(class_names, images, labels))

    tested = part(*test)
    if not val_fraction:
        return ImageDataset(name, source, class_names, part(*train), tested, tested, digest)
    images, labels = train
    rest, held_out = stratified_split(labels, float(val_fraction), class_names, seed, "validation split")
    parts = (part(images[index], labels[index]) for index in (rest, held_out))
    return ImageDataset(name, source, class_names, *parts, tested, digest)
