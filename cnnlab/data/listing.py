"""What lies in a folder: its pictures, by content, and everything that is none, with the reason."""

import os
import re
import stat
from dataclasses import dataclass, field

from PIL import Image

from cnnlab.data.images import FORMATS

# Pictures that Pillow may not open, or opens as a thumbnail only: they are left out by their ending, and said.
NOT_READ = tuple(
    ".heic .heif .avif .jxl .raw .dng .nef .cr2 .cr3 .arw .orf .rw2 .raf .pef .srw .svg .eps .pdf .xcf .exr".split()
)
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
)
STORE_FILES = ("mlflow.db", "pyvenv.cfg")  # of a folder that is a tool's, not the data's
UNREAD = "{} that cannot be read ({})"
# Recognised at their first bytes; the others could be anything.
BY_CONTENT = tuple(name for name in FORMATS if name not in ("TGA", "ICO", "ICNS", "PCX", "SGI", "SUN", "XBM", "XPM"))


@dataclass
class Listing:
    """The pictures of a folder as relative paths, sorted; the folders that may be classes, and what was left out.

    Attributes:
        top: the folder, absolute.
        files: relative paths of what claims or is found to be a picture.
        stamps: path to size in bytes, and times of its content and of its entry in nanoseconds.
        folders: relative paths of all folders that were looked into.
        left_out: reason to relative paths.
    """

    top: str
    files: list[str] = field(default_factory=list)
    stamps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason, path):
        """Count a path as left out."""
        self.left_out.setdefault(reason, []).append(path)


def list_pictures_below(folder) -> Listing:
    """Look through a folder and all below it, links followed.

    A file with a picture's ending is one, so that a broken one is noticed later; others are looked into.
    """
    listing = Listing(os.path.abspath(folder))
    endings = _endings_read()
    waiting, entered = [""], set()
    while waiting:  # not one inside of the other: folders may be thousands deep
        waiting.extend(_look_into(listing, waiting.pop(), endings, entered))
    listing.files.sort()
    listing.folders.sort()
    return listing


def _endings_read():
    Image.init()
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS or name == "MPO"}


def _look_into(listing, below, endings, entered):
    """List one folder; its folders that are to be looked into."""
    here = os.path.join(listing.top, below)
    try:
        with os.scandir(here) as found:
            entries = sorted(found, key=lambda entry: entry.name)
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
    if below:
        listing.folders.append(below)
    for entry in entries:
        path = os.path.join(below, entry.name)
        try:
            about = entry.stat()
        except OSError as error:
            gone = isinstance(error, FileNotFoundError) or entry.is_symlink()
            listing.leave_out("dangling links" if gone else UNREAD.format("files", error.strerror), path)
            continue
        if stat.S_ISDIR(about.st_mode):
            if reason := _no_data(entry):
                _count_below(listing, entry, reason)
            else:
                yield path
        elif not stat.S_ISREG(about.st_mode):
            listing.leave_out("special files", path)
        elif entry.name.startswith("."):
            listing.leave_out("hidden files", path)
        elif _is_picture(entry.path, endings):
            listing.files.append(path)
            # The last one, too, so that nobody's tool can have set it.
            listing.stamps[path] = about.st_size, about.st_mtime_ns, about.st_ctime_ns
        else:
            listing.leave_out(os.path.splitext(entry.name)[1].lower() or "files without ending", path)


def _identity(folder):
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _no_data(entry):
    """Why a folder is none of the data's, or an empty text."""
    if entry.name.startswith("."):
        return "in hidden folders"
    if entry.name.lower() in SYSTEM_FOLDERS:
        return f"in folders {entry.name}"
    if any(os.path.exists(os.path.join(entry.path, name)) for name in STORE_FILES):
        return f"in {entry.name}, the folder of a tool"
    return ""


def _count_below(listing, entry, reason):
    for parent, _, names in os.walk(entry.path):
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


def in_words(left_out) -> str:
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
