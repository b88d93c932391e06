"""The image sets that go by a name: a row for each, and how it is downloaded or read."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from cnnlab.errors import ArgumentError, LabError, expect_one_of
from cnnlab.utils.downloads import download_timeout

DEFAULT_DATASET = "cifar10"
FALLBACK_DATASET = "digits"

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
CIFAR100_CLASSES = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)
DIGITS = tuple(str(i) for i in range(10))


@dataclass(frozen=True)
class BuiltinSet:
    """A named set: its `classes`, and the `side` of its pictures in pixels."""

    classes: tuple[str, ...]
    side: int


BUILTIN_SETS = {
    "cifar10": BuiltinSet(CIFAR10_CLASSES, 32),
    "cifar100": BuiltinSet(CIFAR100_CLASSES, 32),
    "mnist": BuiltinSet(DIGITS, 28),
    "fashion_mnist": BuiltinSet(FASHION_CLASSES, 28),
    "digits": BuiltinSet(DIGITS, 8),
}

# keras.datasets.fashion_mnist downloads these without a hash; the sums are the ones its authors publish.
FASHION_MD5 = {
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
}


def is_folder(name) -> bool:
    """Whether a data set is meant by its folder, not by its name.

    Raises:
        ArgumentError: it is neither a known name nor an existing folder.
    """
    if name in BUILTIN_SETS:
        return False
    with contextlib.suppress(OSError, ValueError):  # too long for a path, or below a folder without permission
        if name and Path(name).is_dir():
            return True
    if re.search(r"[/\\.~]", name):
        raise ArgumentError(
            f"Expected dataset to be a name or an existing folder. Received: '{name}', which is neither."
        )
    expect_one_of("dataset", name, [*BUILTIN_SETS, "an existing folder"])


def has_folder_of_same_name(name) -> bool:
    """Whether a folder of pictures has the name of a built-in set, which is then taken."""
    return Path(name).is_dir()


def load_builtin_set(name, *, limit=None, seed=0):
    """Download or read a named set.

    Returns:
        `(name, source, class_names, train, test)`, both of these `(images, labels, positions)`: images
        `(N, H, W) uint8` or `(N, H, W, 3) uint8` as they come, labels `(N,) int64`, and where they are in the whole
        part.

    Raises:
        ArgumentError: the limit is too small.
        LabError: it cannot be downloaded.
    """
    from cnnlab.data.splitting import stratified_subset

    train, test, source = _read_digits() if name == "digits" else _download(name)
    classes = BUILTIN_SETS[name].classes
    chosen = stratified_subset({"train": train[1], "test": test[1]}, classes, limit, seed)
    parts = [
        (images[index], labels[index], index)
        for (images, labels), index in zip((train, test), chosen.values(), strict=True)
    ]
    return name, source, classes, *parts


def _read_digits():
    """`(images, labels)` of the training and the test set, and the source."""
    import numpy as np
    from sklearn.datasets import load_digits

    from cnnlab.data.splitting import stratified_split

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8) uint8, from 0..16
    labels = digits.target.astype(np.int64)
    # One fixed test set, whatever the seed: scores of different seeds stay comparable.
    train, test = stratified_split(labels, 0.2, DIGITS, 0, "test split")
    return (images[train], labels[train]), (images[test], labels[test]), "sklearn/digits"


def _download(name):
    """As `_read_digits`, through `keras.datasets`."""
    import keras
    import numpy as np

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
            f"--dataset with a folder of images or the embedded {FALLBACK_DATASET}."
        ) from error
    (train_x, train_y), (test_x, test_y) = train, test
    return (
        (train_x, train_y.reshape(-1).astype(np.int64)),
        (test_x, test_y.reshape(-1).astype(np.int64)),
        f"keras.datasets/{name}",
    )
