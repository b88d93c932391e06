"""Image sets: by name or from a folder, as uint8 arrays with class names, a seeded stratified split and a digest."""

import hashlib
import re
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab.errors import ArgumentError, LabError, expect_one_of

DEFAULT_DATASET = "cifar10"
STAND_IN = "digits"
DOWNLOAD_TIMEOUT = 15  # seconds of silence from a host

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
CIFAR100_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
).split()
DIGITS = [str(i) for i in range(10)]
CLASS_NAMES = {
    "cifar10": CIFAR10_CLASSES,
    "cifar100": CIFAR100_CLASSES,
    "mnist": DIGITS,
    "fashion_mnist": FASHION_CLASSES,
    "digits": DIGITS,
}

# keras.datasets.fashion_mnist downloads these without a hash; the sums are the ones its authors publish.
FASHION_MD5 = {
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
}


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels in three parts, with what is needed to tell one data set from another.

    Attributes:
        name: short name; a folder's own name.
        source: what the data is, whatever part of it is used: "keras.datasets/cifar10", "sklearn/digits", or
            "folder/" and a hash of the files' names and sizes. Runs with different sources never share an experiment.
        class_names: the class of each label, in label order.
        train_images, val_images, test_images: `(N, image_size, image_size, 3) uint8`.
        train_labels, val_labels, test_labels: `(N,) int64`.
        digest: sha256 of class names, images and labels of the training set before the validation split, and of the
            test set, so that it does not change with `val_fraction`.
        val_is_test: whether the validation part is the test set itself (`val_fraction=0`).
        stands_in_for: the name of the data set that could not be had, when this is its embedded stand-in.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    digest: str
    val_is_test: bool
    stands_in_for: str | None = None


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
    if not 0 <= val_fraction < 1:
        raise ArgumentError(f"Expected val_fraction to be at least 0 and below 1. Received: {val_fraction}.")
    if name_or_folder is not None and is_folder(str(name_or_folder)):
        from cnnlab.folders import load_folder

        name, source, class_names, train, test = load_folder(name_or_folder, image_size, limit=limit, seed=seed)
        return _split(name, source, class_names, train, test, val_fraction, seed, None)

    stands_in_for = None
    name = name_or_folder or DEFAULT_DATASET
    try:
        train, test, source = _load_named(name, seed)
    except LabError as error:
        if name_or_folder is not None or isinstance(error, ArgumentError):
            raise
        print(
            f"warning: {name} cannot be downloaded; using the embedded {STAND_IN} instead (name --dataset to choose).",
            file=sys.stderr,
        )
        name, stands_in_for = STAND_IN, name
        train, test, source = _load_named(name, seed)

    class_names = tuple(CLASS_NAMES[name])
    train_index, test_index = limited_indices(train[1], test[1], class_names, limit, seed)
    train = (_as_rgb(train[0][train_index], image_size), train[1][train_index])
    test = (_as_rgb(test[0][test_index], image_size), test[1][test_index])
    return _split(name, source, class_names, train, test, val_fraction, seed, stands_in_for)


@contextmanager
def download_timeout():
    """Sockets opened inside give up after `DOWNLOAD_TIMEOUT`; Keras's loaders have no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def stratified_split(labels, part, class_names, seed, what):
    """Indices `(rest, part)` of a seeded stratified split; `part` is a number or a share, at least one a class.

    Raises:
        ArgumentError: a class would be missing from one side.
    """
    from sklearn.model_selection import train_test_split

    count = part if isinstance(part, int) else max(round(part * len(labels)), len(class_names))
    smallest = int(np.bincount(labels, minlength=len(class_names)).min())
    if smallest < 2 or count < len(class_names) or len(labels) - count < len(class_names):
        raise ArgumentError(
            f"Expected at least one image of each of the {len(class_names)} classes on both sides of the {what}. "
            f"Received: {count} of {len(labels)} images, the smallest class having {smallest}. "
            "Use more images or another share."
        )
    rest, chosen = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(chosen)


def limited_indices(train_labels, test_labels, class_names, limit, seed):
    """Indices of a stratified choice of at most `limit` training images, and of test images in proportion.

    Raises:
        ArgumentError: the limit leaves less than one training image for each class.
    """
    if limit is not None and limit < len(class_names):
        raise ArgumentError(
            f"Expected limit to be at least {len(class_names)}, an image for each class. Received: {limit}."
        )
    share = 1.0 if limit is None else min(1.0, limit / len(train_labels))
    chosen = []
    for labels in (train_labels, test_labels):
        count = max(round(share * len(labels)), len(class_names))
        if len(labels) - count >= len(class_names):
            chosen.append(stratified_split(labels, count, class_names, seed, f"limit of {limit} images")[1])
        else:  # all but a few: a stratified split has no room for the rest
            order = np.random.default_rng(seed).permutation(len(labels))
            chosen.append(np.sort(order[:count]))
    return chosen


def digest_of(class_names, *arrays) -> str:
    """sha256 of a data set or a part of it: its class names, and its images and labels."""
    digest = hashlib.sha256("\0".join(class_names).encode())
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def is_folder(name) -> bool:
    """Whether a data set is meant by its folder, not by its name.

    Raises:
        ArgumentError: it is neither a known name nor an existing folder.
    """
    if name in CLASS_NAMES:
        return False
    if Path(name).is_dir():
        return True
    if re.search(r"[/\\.~]", name):
        raise ArgumentError(
            f"Expected dataset to be a name or an existing folder. Received: '{name}', which is neither."
        )
    expect_one_of("dataset", name, [*CLASS_NAMES, "an existing folder"])


def _load_named(name, seed):
    """`(images, labels)` of the training and the test set, and the source."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8) uint8, from 0..16
        labels = digits.target.astype(np.int64)
        # One fixed test set, whatever the seed: scores of different seeds stay comparable.
        train, test = stratified_split(labels, 0.2, DIGITS, 0, "test split")
        return (images[train], labels[train]), (images[test], labels[test]), "sklearn/digits"

    import keras

    try:
        with download_timeout():
            if name == "fashion_mnist":
                base = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
                for file, md5 in FASHION_MD5.items():
                    keras.utils.get_file(
                        file, base + file, cache_subdir="datasets/fashion-mnist", file_hash=md5, hash_algorithm="md5"
                    )
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception when the host cannot be reached
        raise LabError(
            f"Expected to download {name}. Received: {error or type(error).__name__}. Connect to a network, or use "
            f"--dataset with a folder of images or the embedded {STAND_IN}."
        ) from error
    (train_x, train_y), (test_x, test_y) = train, test
    return (
        (train_x, train_y.reshape(-1).astype(np.int64)),
        (test_x, test_y.reshape(-1).astype(np.int64)),
        f"keras.datasets/{name}",
    )


def _as_rgb(images, image_size):
    """`(N, H, W)` or `(N, H, W, 3) uint8` to `(N, image_size, image_size, 3) uint8`."""
    from PIL import Image

    if images.shape[1:3] != (image_size, image_size):
        size = (image_size, image_size)
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BILINEAR)) for i in images])
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    return np.ascontiguousarray(images)


def _split(name, source, class_names, train, test, val_fraction, seed, stands_in_for):
    (train_images, train_labels), (test_images, test_labels) = train, test
    digest = digest_of(class_names, train_images, train_labels, test_images, test_labels)
    val_images, val_labels = test_images, test_labels
    if val_fraction:
        rest, held_out = stratified_split(train_labels, float(val_fraction), class_names, seed, "validation split")
        val_images, val_labels = train_images[held_out], train_labels[held_out]
        train_images, train_labels = train_images[rest], train_labels[rest]
    return ImageDataset(
        name=name,
        source=source,
        class_names=tuple(class_names),
        train_images=train_images,
        train_labels=train_labels,
        val_images=val_images,
        val_labels=val_labels,
        test_images=test_images,
        test_labels=test_labels,
        digest=digest,
        val_is_test=not val_fraction,
        stands_in_for=stands_in_for,
    )
