"""What lies in a folder: its pictures, by content, and everything that is none, with the reason."""

import os
import re
import stat
from array import array
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from cnnlab.data.decoding import FORMATS

# Pictures that Pillow may not open, or opens as a thumbnail only: they are left out by their ending, and said.
NOT_READ = tuple(
    ".heic .heif .avif .jxl .raw .dng .nef .cr2 .cr3 .arw .orf .rw2 .raf .pef .srw .svg .eps .pdf .xcf .exr".split()
)
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
)
STORE_FILES = ("mlflow.db", "pyvenv.cfg")  # of a folder that is a tool's, not the data's
LARGEST = 2**63 - 1  # nanoseconds since 1970; file systems know times before it, and after the year 2262
UNREAD = "{} that cannot be read ({})"
# Recognised at their first bytes; the others could be anything.
BY_CONTENT = tuple(name for name in FORMATS if name not in ("TGA", "ICO", "ICNS", "PCX", "SGI", "SUN", "XBM", "XPM"))


@dataclass
class FolderScan:
    """The pictures of a folder as relative paths, sorted; the folders that may be classes, and what was left out.

    Attributes:
        top: the folder, absolute.
        files: `(N,)` relative paths of what claims or is found to be a picture.
        stamps: `(N, 3) int64`, their sizes in bytes, and times of their content and of their entry in nanoseconds.
        inside: `(N,) int64`, which of the folders each is in.
        folders: relative paths of all folders that were looked into, the top as an empty text, sorted.
        left_out: reason to relative paths.
    """

    top: str
    files: np.ndarray = None
    stamps: np.ndarray = None
    inside: np.ndarray = None
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason, path):
        """Count a path as left out."""
        self.left_out.setdefault(reason, []).append(path)

    def numbers(self, folders) -> np.ndarray:
        """The numbers of some of the folders, by their paths."""
        wanted = set(folders)
        return np.array([number for number, folder in enumerate(self.folders) if folder in wanted], np.int64)


def scan_folder(folder) -> FolderScan:
    """Look through a folder and all below it, links followed.

    A file with a picture's ending is one, so that a broken one is noticed later; others are looked into.
    """
    listing = FolderScan(os.path.abspath(folder))
    endings = _endings_read()
    waiting, entered, files, numbers = [""], set(), [], array("q")
    while waiting:  # not one inside of the other: folders may be thousands deep
        waiting.extend(_look_into(listing, waiting.pop(), endings, entered, files, numbers))
    # A text and numbers in tables for each file, not objects: there may be hundreds of thousands.
    files, numbers = np.array(files, dtype=object), np.array(numbers, np.int64).reshape(-1, 4)
    order = np.argsort(files, kind="stable")
    listing.files, listing.stamps = files[order], numbers[order, 1:]
    listing.inside, listing.folders = _renumbered(numbers[order, 0], listing.folders)
    return listing


def _renumbered(inside, folders):
    """Sorted folders, and where they are then."""
    order = sorted(range(len(folders)), key=folders.__getitem__)
    place = np.empty(len(folders), np.int64)
    place[order] = np.arange(len(folders))
    return place[inside], [folders[number] for number in order]


def _endings_read():
    Image.init()
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS or name == "MPO"}


def _look_into(listing, below, endings, entered, files, numbers):
    """List one folder: paths to `files`, and the folder's number and the three stamps of each to `numbers`; yields its
    folders that are to be looked into.
    """
    here = os.path.join(listing.top, below)
    try:
        with os.scandir(here) as found:
            names = sorted(entry.name for entry in found)
        about = os.stat(here)
    except OSError as error:
        listing.leave_out(UNREAD.format("folders", error.strerror), below)
        return
    # Once in each folder at the top: a class may be linked to two of them, and links may lead round in circles.
    place = below.partition(os.sep)[0], about.st_dev, about.st_ino
    if place in entered or (below and (about.st_dev, about.st_ino) == _identity(listing.top)):
        listing.leave_out("circular links", below)
        return
    entered.add(place)
    listing.folders.append(below)
    for name in names:
        path, whole = os.path.join(below, name), os.path.join(here, name)
        try:
            about = os.stat(whole)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError) or os.path.islink(whole)
            listing.leave_out("dangling links" if gone else UNREAD.format("files", error.strerror), path)
            continue
        if stat.S_ISDIR(about.st_mode):
            if reason := _no_data(whole, name):
                _count_below(listing, whole, reason)
            else:
                yield path
        elif not stat.S_ISREG(about.st_mode):
            listing.leave_out("special files", path)
        elif name.startswith("."):
            listing.leave_out("hidden files", path)
        elif _is_picture(whole, endings):
            files.append(path)
            # The last one, too, so that nobody's tool can have set it.
            times = (time & LARGEST for time in (about.st_mtime_ns, about.st_ctime_ns))
            numbers.extend((len(listing.folders) - 1, about.st_size, *times))
        else:
            listing.leave_out(os.path.splitext(name)[1].lower() or "files without ending", path)


def _identity(folder):
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _no_data(folder, name):
    """Why a folder of that name is none of the data's, or an empty text."""
    if name.startswith("."):
        return "in hidden folders"
    if name.lower() in SYSTEM_FOLDERS:
        return f"in folders {name}"
    if any(os.path.exists(os.path.join(folder, file)) for file in STORE_FILES):
        return f"in {name}, the folder of a tool"
    return ""


def _count_below(listing, folder, reason):
    for parent, _, names in os.walk(folder):
        for name in names:
            listing.leave_out(reason, os.path.relpath(os.path.join(parent, name), listing.top))


def _is_picture(file, endings):
    ending = os.path.splitext(file)[1].lower()
    if ending in endings:
        return True
    if ending in NOT_READ:
        return False
    try:
        with Image.open(file, formats=BY_CONTENT):
            return True
    except (Image.DecompressionBombError, PermissionError):  # said when it is read
        return True
    except Exception:  # Pillow's readers raise all kinds
        return False


def describe_left_out(left_out) -> str:
    """What was left out, in one line: "20 .heic in dog/, 5 files in hidden folders"; empty where nothing was."""
    said = []
    for reason, paths in left_out.items():
        folders = {os.path.dirname(path) for path in paths}
        place = f" in {next(iter(folders))}/" if len(folders) == 1 and "" not in folders else ""
        what = f"files {reason}" if reason.startswith("in ") else reason
        if len(paths) == 1:
            what = re.sub(r"^(\w+ )?(file|link|picture|row|folder)s\b", r"\1\2", what)
        said.append(f"{len(paths):,} {what}{place if ' in ' not in what else ''}")
    return ", ".join(said)
