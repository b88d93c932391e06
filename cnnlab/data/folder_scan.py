"""Scan a folder for pictures, recognised by their endings or contents, and list what is left out with the reasons."""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnnlab.data.decoding import FORMATS

# Pictures that Pillow may not open, or opens as a thumbnail only: they are left out by their ending, and reported.
NOT_READ = tuple(
    ".heic .heif .avif .jxl .raw .dng .nef .cr2 .cr3 .arw .orf .rw2 .raf .pef .srw .svg .eps .pdf .xcf .exr".split()
)
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
)
STORE_FILES = ("mlflow.db", "pyvenv.cfg")  # a folder with one of them belongs to a tool, not to the data
LARGEST_TIME = 2**63 - 1  # nanoseconds since 1970; file systems know times before it, and after the year 2262
UNREADABLE = "{} that cannot be read ({})"
# Formats that are recognised by the first bytes of a file; files of the others could be anything.
BY_CONTENT = tuple(name for name in FORMATS if name not in ("TGA", "ICO", "ICNS", "PCX", "SGI", "SUN", "XBM", "XPM"))


@dataclass
class FolderScan:
    """Hold the pictures of a folder as sorted relative paths, its folders, and what was left out."""

    root: str  # the folder, absolute
    # `(N,)` relative paths of files with a picture's ending or content, sorted.
    files: npt.NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    # `(N, 3) int64`, of each file the size in bytes, and the times of its content and of its entry in nanoseconds.
    stamps: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 3), np.int64))
    # `(N,) int64`, the position in `folders` of the folder that each file is in.
    folder_of: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    # Relative paths of all folders that were scanned, sorted; the root is an empty text.
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)  # the relative paths that are not used, by reason

    def leave_out(self, reason: str, path: str) -> None:
        """Record a path as left out."""
        self.left_out.setdefault(reason, []).append(path)

    def leave_out_folders(self, reason: str, folders: Iterable[str]) -> None:
        """Record the files directly in some folders as left out."""
        wanted = set(folders)
        numbers = [number for number, folder in enumerate(self.folders) if folder in wanted]
        for path in self.files[np.isin(self.folder_of, numbers)]:
            self.leave_out(reason, path)


@dataclass(frozen=True)
class Assignment:
    """Say which class and split each file of a scan belongs to."""

    class_names: list[str]  # C names
    labels: npt.NDArray[np.int64]  # `(N,) int64`, positions in the class names; -1 for files that are not used
    splits: npt.NDArray[np.str_]  # `(N,)` of "train", "val" and "test"; "" for files that are not used
    notes: list[str]  # sentences on how the folder was understood


def scan_folder(folder: str | os.PathLike[str]) -> FolderScan:
    """Scan a folder and all folders below it for pictures; links are followed.

    A file with a picture's ending counts as a picture, so that a broken one is reported when it is decoded; other files
    are recognised by their content.
    """
    scan = FolderScan(os.path.abspath(folder))
    Image.init()
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS or name == "MPO"}
    waiting, entered, paths, numbers = [""], set(), [], array("q")
    while waiting:  # a stack, not recursion: folders may be thousands deep
        waiting.extend(_scan_one(scan, waiting.pop(), endings, entered, paths, numbers))
    # Text and numbers in arrays, not an object for each file: there may be hundreds of thousands.
    files, table = np.array(paths, dtype=object), np.array(numbers, np.int64).reshape(-1, 4)
    order = np.argsort(files, kind="stable")
    scan.files, scan.stamps = files[order], table[order, 1:]
    folders = sorted(range(len(scan.folders)), key=scan.folders.__getitem__)
    scan.folder_of = np.argsort(folders)[table[order, 0]]
    scan.folders = [scan.folders[number] for number in folders]
    return scan


def _scan_one(
    scan: FolderScan,
    folder: str,
    endings: set[str],
    entered: set[tuple[str, int, int]],
    paths: list[str],
    numbers: array[int],
) -> Iterator[str]:
    """Scan one folder, without the folders in it, which are yielded.

    What it finds is added to the folders `entered` so far, to the `paths` of the pictures, and to the `numbers`: the
    folder's number and the three stamps of each picture.
    """
    whole_folder = os.path.join(scan.root, folder)
    try:
        with os.scandir(whole_folder) as entries:
            names = sorted(entry.name for entry in entries)
        about = os.stat(whole_folder)
    except OSError as error:
        scan.leave_out(UNREADABLE.format("folders", error.strerror), folder)
        return
    # Once below each folder at the top: a class may be linked to two of them, and links may lead round in circles.
    place = folder.partition(os.sep)[0], about.st_dev, about.st_ino
    if place in entered or (folder and os.path.samestat(about, os.stat(scan.root))):
        scan.leave_out("circular links", folder)
        return
    entered.add(place)
    scan.folders.append(folder)
    for name in names:
        path, whole = os.path.join(folder, name), os.path.join(whole_folder, name)
        try:
            about = os.stat(whole)
        except OSError as error:
            dangling = isinstance(error, FileNotFoundError) or os.path.islink(whole)
            scan.leave_out("dangling links" if dangling else UNREADABLE.format("files", error.strerror), path)
            continue
        if stat.S_ISDIR(about.st_mode):
            if reason := _reason_to_skip(whole, name):
                for file in (os.path.join(parent, one) for parent, _, below in os.walk(whole) for one in below):
                    scan.leave_out(reason, os.path.relpath(file, scan.root))
            else:
                yield path
        elif not stat.S_ISREG(about.st_mode):
            scan.leave_out("special files", path)
        elif name.startswith("."):
            scan.leave_out("hidden files", path)
        elif _is_picture(whole, endings):
            paths.append(path)
            # The time of the entry too, as no tool can have set it.
            times = (time & LARGEST_TIME for time in (about.st_mtime_ns, about.st_ctime_ns))
            numbers.extend((len(scan.folders) - 1, about.st_size, *times))
        else:
            scan.leave_out(os.path.splitext(name)[1].lower() or "files without ending", path)


def _reason_to_skip(folder: str, name: str) -> str:
    """Return why a folder does not belong to the data, or an empty text."""
    if name.startswith("."):
        return "in hidden folders"
    if name.lower() in SYSTEM_FOLDERS:
        return f"in folders {name}"
    if any(os.path.exists(os.path.join(folder, file)) for file in STORE_FILES):
        return f"in {name}, the folder of a tool"
    return ""


def _is_picture(file: str, endings: set[str]) -> bool:
    ending = os.path.splitext(file)[1].lower()
    if ending in endings:
        return True
    if ending in NOT_READ:
        return False
    try:
        with Image.open(file, formats=BY_CONTENT):
            return True
    except (Image.DecompressionBombError, PermissionError):  # reported when it is decoded
        return True
    except Exception:  # Pillow's readers raise all kinds
        return False


def describe_left_out(left_out: Mapping[str, Sequence[str]]) -> str:
    """Describe what was left out in one line, such as "20 .heic in dog/, 5 files in hidden folders"."""
    described = []
    for reason, paths in left_out.items():
        folders = {os.path.dirname(path) for path in paths}
        place = f" in {next(iter(folders))}/" if len(folders) == 1 and "" not in folders else ""
        what = f"files {reason}" if reason.startswith("in ") else reason
        if len(paths) == 1:
            what = re.sub(r"^(\w+ )?(file|link|picture|row|folder)s\b", r"\1\2", what)
        described.append(f"{len(paths):,} {what}{place if ' in ' not in what else ''}")
    return ", ".join(described)
