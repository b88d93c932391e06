"""Mutated picture files against the decoder: python benchmarks/mutated_pictures.py [COUNT]

Files of six formats, with EXIF where they can have it, are cut or changed in one to eight bytes. Each must decode or
give the one sentence; anything else is counted as other.
"""

import io
import random
import resource
import sys
import time
from collections import Counter

import numpy as np
from PIL import Image

from cnnlab.data.images import UndecodableError, decode_image

WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF")


def whole_files():
    """Good files, as bytes."""
    pixels = np.random.default_rng(0)
    for width, height in ((40, 30), (33, 64)):
        image = Image.fromarray(pixels.integers(0, 255, (height, width, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x011A] = 6, "camera", 72.5
        for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
            options = [{}, {"exif": exif}] if name in WITH_EXIF else [{}]
            if name == "TIFF":
                options += [{"compression": kind} for kind in ("tiff_lzw", "tiff_deflate", "jpeg")]
            for one in options:
                file = io.BytesIO()
                image.save(file, name, **one)
                yield file.getvalue()


def mutated(content, chance):
    content = bytearray(content)
    kind = chance.random()
    if kind < 0.35:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(1 if kind < 0.85 else 8):
        # More often in the head, where the structure is.
        place = chance.randrange(min(len(content), 200) if chance.random() < 0.6 else len(content))
        content[place] = chance.randrange(256)
    return bytes(content)


def main(count):
    chance, files, outcomes, slowest, started = (
        random.Random(0),
        list(whole_files()),
        Counter(),
        0.0,
        time.perf_counter(),
    )
    for i in range(count):
        content, began = mutated(files[i % len(files)], chance), time.perf_counter()
        try:
            outcomes["decoded" if decode_image(content, 32).shape == (32, 32, 3) else "other shape"] += 1
        except UndecodableError:
            outcomes["sentence"] += 1
        except Exception as error:
            outcomes[f"other: {type(error).__name__}"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} files in {time.perf_counter() - started:.0f} s: {dict(outcomes)}")
    print(f"slowest {slowest:.2f} s, peak memory {memory:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
