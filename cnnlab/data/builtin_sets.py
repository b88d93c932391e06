"""The built-in data sets, such as CIFAR-10: their names and classes, and how each is downloaded or read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cnnlab.errors import ArgumentError, did_you_mean, expecting
from cnnlab.utils.downloads import download_timeout

if TYPE_CHECKING:  # the command line asks for names only, and answers without NumPy
    import numpy as np
    import numpy.typing as npt

    Labelled: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # images and labels

DEFAULT_DATASET = "cifar10"
FALLBACK_DATASET = "digits"  # comes with scikit-learn; takes the default's place without a network

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
    """Describe a built-in data set."""

    classes: tuple[str, ...]  # names in label order
    side: int  # pixels a side of its pictures


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


def is_folder(name: str) -> bool:
    """Return whether a folder names the data set, not a built-in name; raise `ArgumentError` where it is neither."""
    if name in BUILTIN_SETS:
        return False
    with contextlib.suppress(OSError, ValueError):  # too long for a path, or below a folder without permission
        if name and Path(name).is_dir():
            return True
    raise ArgumentError(
        f"Expected dataset to be one of: {', '.join(BUILTIN_SETS)}, an existing folder. Received: '{name}'."
        + did_you_mean(name, BUILTIN_SETS, Path.is_dir)
    )


@dataclass(frozen=True)
class LoadedSplit:
    """Hold the images and labels of one split of a built-in set."""

    images: npt.NDArray[np.uint8]  # `(N, H, W)` or `(N, H, W, 3) uint8`, as they come
    labels: npt.NDArray[np.int64]  # `(N,) int64`
    positions: npt.NDArray[np.int64]  # `(N,) int64`, their positions in the whole split before a limit


def load_builtin_set(name: str, *, limit: int | None = None, seed: int = 0) -> tuple[str, dict[str, LoadedSplit]]:
    """Download or read one of `BUILTIN_SETS`; a `limit` is of training images, and of test images in proportion.

    Returns:
        `(source, splits)`: where it comes from, such as "keras.datasets/cifar10", and "train" and "test".

    Raises:
        ArgumentError: the limit is too small.
        LabError: it cannot be downloaded.
    """
    from cnnlab.data.splitting import stratified_subset

    whole = _read_digits() if name == "digits" else _download(name)
    source = "sklearn/digits" if name == "digits" else f"keras.datasets/{name}"
    classes = BUILTIN_SETS[name].classes
    chosen = stratified_subset({split: labels for split, (_, labels) in whole.items()}, classes, limit, seed)
    return source, {
        split: LoadedSplit(images[chosen[split]], labels[chosen[split]], chosen[split])
        for split, (images, labels) in whole.items()
    }


def _read_digits() -> dict[str, Labelled]:
    """Read the digits that come with scikit-learn, and hold a fifth of them out as the test set."""
    import numpy as np
    from sklearn.datasets import load_digits

    from cnnlab.data.splitting import stratified_split

    digits: Any = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8) uint8, from 0..16
    labels = digits.target.astype(np.int64)
    # One fixed test set, whatever the seed: scores of different seeds stay comparable.
    train, test = stratified_split(labels, 0.2, DIGITS, 0, "test split")
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _download(name: str) -> dict[str, Labelled]:
    """Download a set through `keras.datasets`, or find it downloaded."""
    import keras
    import numpy as np

    other = f"a folder of images as dataset or the embedded {FALLBACK_DATASET}"
    # Keras raises a bare Exception when the host cannot be reached.
    with expecting(f"to download {name}", f"Connect to a network, or use {other}.", ""), download_timeout():
        base = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
        for file, md5 in FASHION_MD5.items() if name == "fashion_mnist" else ():
            folder = "datasets/fashion-mnist"
            keras.utils.get_file(file, base + file, cache_subdir=folder, file_hash=md5, hash_algorithm="md5")
        train, test = getattr(keras.datasets, name).load_data()
    return {
        split: (images, labels.reshape(-1).astype(np.int64))
        for split, (images, labels) in (("train", train), ("test", test))
    }
