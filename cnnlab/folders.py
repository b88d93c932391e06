"""Folders of pictures: listing the classes, and decoding on all cores to uint8 arrays of one size."""

import hashlib
from pathlib import Path

import numpy as np

from cnnlab.errors import ArgumentError, LabError

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
FORMATS = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
CHUNK = 500  # images a task: large enough that sending arrays between processes costs little
TEST_SHARE = 0.2  # of a folder that has no test set of its own


def load_folder(folder, image_size, *, limit=None, seed=0):
    """Read `train/<class>/*` and `test/<class>/*`, or class folders only.

    Returns:
        `(name, source, class_names, (train_images, train_labels), (test_images, test_labels))`, images
        `(N, image_size, image_size, 3) uint8`, labels `(N,) int64`.

    Raises:
        ArgumentError: the folder is empty, has one class, or the test set has classes that the training set lacks.
        LabError: an image does not decode (the message names the file).
    """
    from cnnlab.data import limited_indices, stratified_split

    folder = Path(folder).resolve()
    parts = {p.name for p in folder.iterdir() if p.is_dir()}
    if {"train", "test"} <= parts:
        train, test = _list_classes(folder / "train"), _list_classes(folder / "test")
        if extra := sorted(set(test) - set(train)):
            raise ArgumentError(
                f"Expected every class of '{folder / 'test'}' to be in train too. "
                f"Received: {', '.join(extra)} in test only. Add training images of it or remove it."
            )
        class_names = sorted(train)
        train_files, train_labels = _flatten(train, class_names)
        test_files, test_labels = _flatten(test, class_names)
    elif "train" in parts:
        raise ArgumentError(
            f"Expected '{folder}' to hold train/ and test/, or class folders only. Received: train/ without test/. "
            f"Add test/, or pass '{folder / 'train'}' to have a test set split off."
        )
    else:
        classes = _list_classes(folder)
        class_names = sorted(classes)
        files, labels = _flatten(classes, class_names)
        rest, chosen = stratified_split(labels, TEST_SHARE, class_names, seed, "test split")
        train_files, train_labels = files[rest], labels[rest]
        test_files, test_labels = files[chosen], labels[chosen]

    source = _source(folder, train_files, test_files)
    train_index, test_index = limited_indices(train_labels, test_labels, class_names, limit, seed)
    train_files, train_labels = train_files[train_index], train_labels[train_index]
    test_files, test_labels = test_files[test_index], test_labels[test_index]
    # Two arrays: a view into a common one would keep all of it in memory.
    train_images, test_images = decode_files(train_files, image_size), decode_files(test_files, image_size)
    return folder.name, source, class_names, (train_images, train_labels), (test_images, test_labels)


def pictures_below(folder):
    """Files in a folder and its subfolders that claim to be pictures, in no order; hidden ones are left out."""
    return (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def decode_image(path, image_size) -> np.ndarray:
    """One picture of any format, size and colour mode as `(image_size, image_size, 3) uint8`.

    EXIF orientation is respected, transparency is laid on white, of an animation the first frame is taken, and the
    picture is stretched to the square.

    Raises:
        LabError: the file does not decode as an image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16-bit grey: convert() would clip it, not scale it
                image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (image_size, image_size):
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is not in an image format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise LabError(
            f"Expected '{path}' to be an image. Received a file that does not decode: {reason}. Repair or remove it."
        ) from error


def decode_files(files, image_size) -> np.ndarray:
    """All files as `(N, image_size, image_size, 3) uint8`, on all cores, with a progress bar."""
    import joblib
    from joblib.externals.loky import get_reusable_executor
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(files), image_size, image_size, 3), np.uint8)
    chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
    # Starting the workers takes about a second, which a few images are not worth.
    jobs = -1 if len(chunks) > 4 else 1
    decoded = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(_decode_chunk)(chunk, image_size) for chunk in chunks
    )
    done = 0
    title, console = f"Decoding {len(files):,} images", Console(stderr=True)
    for chunk in track(decoded, title, total=len(chunks), console=console, disable=not console.is_terminal):
        images[done : done + len(chunk)] = chunk
        done += len(chunk)
    if jobs != 1:  # idle workers would stay for minutes, with a copy of the libraries each
        get_reusable_executor().shutdown(wait=True)
    return images


def _decode_chunk(files, image_size):
    return np.stack([decode_image(file, image_size) for file in files])


def _list_classes(folder):
    """Class name to its sorted image files; hidden files and files that claim to be no image are left out."""
    classes = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            files = sorted(str(p) for p in pictures_below(child))
            if files:
                classes[child.name] = files
    if len(classes) < 2:
        received = f"only '{next(iter(classes))}'" if classes else "none"
        raise ArgumentError(
            f"Expected '{folder}' to hold at least two class folders with images ({FORMATS}). Received: {received}."
        )
    return classes


def _flatten(classes, class_names):
    files = np.array([file for name in class_names for file in classes.get(name, ())], dtype=object)
    labels = [label for label, name in enumerate(class_names) for _ in classes.get(name, ())]
    return files, np.array(labels, dtype=np.int64)


def _source(folder, train_files, test_files):
    """A name for the folder's content that survives moving it: a hash of the relative names and sizes of its files."""
    listing = hashlib.sha256()
    for file in sorted([*train_files, *test_files]):
        listing.update(f"{Path(file).relative_to(folder)}\0{Path(file).stat().st_size}\n".encode())
    return f"folder/{listing.hexdigest()[:12]}"
