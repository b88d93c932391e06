"""Small pictures and folders of them, as people have them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = [(200, 40, 40), (40, 60, 200), (40, 180, 60), (200, 190, 40)]


def picture(kind, number, size=(16, 16)):
    """Noise around the colour of its kind, different for each number."""
    pixels = COLOURS[kind % 4] + np.random.default_rng(kind * 100_003 + number).normal(0, 35, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image, file_format="JPEG", **options):
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def fill(folder, classes, count, start=0, ending="png"):
    """`folder/<class>/<number>.<ending>`; `count` is a number, or one for each class."""
    for kind, name in enumerate(classes):
        target = Path(folder, name)
        target.mkdir(parents=True, exist_ok=True)
        for i in range(start, start + (count[kind] if isinstance(count, list) else count)):
            picture(kind, i).save(target / f"{i:04}.{ending}")
    return Path(folder)


def with_exif(jpeg, tiff):
    """A JPEG with this TIFF block as its EXIF segment."""
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def exif_block(*entries, extra=b""):
    """A little-endian TIFF block of one directory: `(tag, type, count, 4 bytes)`, and what follows it."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + extra


def chunk(name, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
