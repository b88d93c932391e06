"""Decode one picture file, of any format that Pillow reads, to a square of uint8 RGB pixels."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import struct
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from cnnlab.errors import ArgumentError, LabError, first_line

if TYPE_CHECKING:  # decoding itself needs no NumPy for most pictures
    import numpy as np
    import numpy.typing as npt

with contextlib.suppress(ImportError):  # the extra "heic"
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()

# The formats that are read, by Pillow's names: formats of pixels only, none that is a program or a document (EPS, WMF).
Image.init()
WANTED = "JPEG PNG WEBP GIF BMP TIFF AVIF HEIF DDS DIB ICNS ICO JPEG2000 PCX PPM PSD QOI SGI SUN XBM XPM TGA".split()
FORMATS: tuple[str, ...] = tuple(name for name in WANTED if name in Image.OPEN)
ResizeMode = Literal["stretch", "crop", "pad"]
RESIZE_MODES: tuple[ResizeMode, ...] = ("stretch", "crop", "pad")
# The most pixels that are decoded: 0.84 GB at 4 bytes each, of which some decoders keep two. A JPEG that is much larger
# than needed is decoded at a reduced scale, so that its reduced size counts.
MOST_PIXELS = 210_000_000
MOST_TIMES_IN_FILE = 4  # a file may have as many times more pixels than are decoded
MOST_CONVERTED = 16_000_000  # pixels; larger pictures are reduced before their colours are converted
SIXTEEN_BITS: tuple[float, float] = (0, 65_535)  # the range of 16-bit grey
NO_VALUE = 1e30  # grey values of this size and above mark missing values
MOST_BYTES = 2**30  # of a file
PAD_GREY = 128  # of the borders that "pad" adds

ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation, from 2 on, to the transposition that undoes it.
UNDONE_BY = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(UNDONE_BY, start=2)}
SIDEWAYS = (5, 6, 7, 8)
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Held while Pillow's limit on pixels, which is one number for the whole process, is lifted; ours are above.
PIXEL_LIMIT_LOCK = threading.Lock()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # on metadata that is of no use here


class UndecodableError(LabError):
    """Report a file that does not decode, and keep the `file` and the `reason` apart from the sentence."""

    def __init__(self, file: object, reason: object) -> None:
        super().__init__(
            f"Expected '{file}' to be an image. Received a file that does not decode: {reason}. Repair or remove it."
        )
        self.file: object = file
        self.reason: object = reason

    def __reduce__(self) -> tuple[Any, ...]:  # decoding workers send it
        return type(self), (self.file, self.reason)


class UnreadError(UndecodableError):
    """Report a file that cannot be read now, which may pass."""


@dataclass(frozen=True)
class DecodedImage:
    """Hold a decoded picture."""

    image: Image.Image  # a square of mode RGB
    size: tuple[int, int]  # width and height before it became a square
    grey_range: tuple[float, float] | None = None  # lowest and highest value of 16-bit grey, `None` for other pictures


def decode_image(
    file: str | os.PathLike[str] | bytes,
    image_size: int,
    *,
    resize_mode: str = "crop",
    grey_range: tuple[float, float] = SIXTEEN_BITS,
    most_pixels: int = MOST_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Decode one picture of any format, size and colour mode.

    A good EXIF orientation is respected, and damaged metadata never stops a picture whose pixels are fine. Transparency
    is laid on white, and of an animation the first frame is taken.

    Args:
        file: a path, or the file's content as bytes.
        image_size: pixels a side of the result.
        resize_mode: how the picture becomes a square: "crop" cuts its middle out, "pad" adds grey borders, "stretch"
            changes its shape.
        grey_range: lowest and highest value of grey pictures of 16 bits or floats, which become 0 and 255.
        most_pixels: that are decoded; larger pictures are refused.

    Returns:
        `(image_size, image_size, 3) uint8`.

    Raises:
        LabError: the file does not decode as an image.
    """
    import numpy as np

    content, name = (file, "the file") if isinstance(file, bytes) else (read_file(file), file)
    return np.asarray(decode_bytes(content, name, image_size, resize_mode, grey_range, most_pixels).image)


def read_file(file: str | os.PathLike[str]) -> bytes:
    """Read a file; raise `UnreadError` where it cannot be read now, `UndecodableError` where it can be no picture."""
    try:
        about = os.stat(file)
        if not stat.S_ISREG(about.st_mode):
            raise UndecodableError(file, "it is no file")
        if about.st_size > MOST_BYTES:
            raise UndecodableError(file, f"it has {about.st_size:,} bytes, and at most {MOST_BYTES:,} are read")
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise UnreadError(file, error.strerror or error) from error


def decode_bytes(
    content: bytes,
    name: object,
    side: int,
    resize_mode: str = "crop",
    grey_range: tuple[float, float] = SIXTEEN_BITS,
    most_pixels: int = MOST_PIXELS,
) -> DecodedImage:
    """Decode the content of a file as `decode_image` does; `name` is the file's, for the error message.

    Raises:
        ArgumentError: the resize mode is unknown.
        UndecodableError: the content does not decode.
    """
    if resize_mode not in RESIZE_MODES:
        raise ArgumentError(f"Expected resize_mode to be one of: {', '.join(RESIZE_MODES)}. Received: '{resize_mode}'.")
    if not content:
        raise UndecodableError(name, "it is empty")
    how = (side, resize_mode, grey_range, most_pixels)
    without_metadata = _png_pixels if content.startswith(PNG) else _jpeg_pixels if content.startswith(JPEG) else None
    try:
        try:
            return _decode(content, *how)
        except Exception as error:
            if isinstance(error, _TooLargeError) or without_metadata is None:
                raise
            return _decode(without_metadata(content), *how)
    except Exception as error:  # Pillow's readers raise all kinds: struct.error, IndexError, ZeroDivisionError, ...
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "it is not in an image format" if unknown else first_line(error) or type(error).__name__
        raise UndecodableError(name, reason) from error


class _TooLargeError(Exception):
    pass


def _decode(content: bytes, *how: Any) -> DecodedImage:
    """Decode without Pillow's limit on pixels, which is lifted only for pictures that exceed it."""
    try:
        return _decode_limited(content, *how)
    except Image.DecompressionBombError:
        with PIXEL_LIMIT_LOCK:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return _decode_limited(content, *how)
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _decode_limited(
    content: bytes, side: int, resize_mode: str, grey_range: tuple[float, float], most_pixels: int
) -> DecodedImage:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        for most in (MOST_TIMES_IN_FILE * most_pixels, most_pixels):
            if image.width * image.height > most:
                read = f"at most {most_pixels / 1e6:.0f} million are read"
                raise _TooLargeError(f"it has {image.width} x {image.height} pixels, and {read}")
            image.draft(None, (2 * side, 2 * side))  # JPEG, the first time: 1/2, 1/4 or 1/8 of each side
        image.load()
        orientation = 1  # Pillow turns a TIFF when it loads it, and forgets its orientation
        with contextlib.suppress(Exception):  # EXIF can be broken in every way, and says nothing about the pixels
            orientation = int(image.getexif().get(ORIENTATION, 1))
        found_range = None
        if image.mode.startswith(("I", "F")):  # convert() would clip it, not scale it
            image, found_range = _scale_grey(image, grey_range, clear=image.info.get("transparency"))
        image = _reduced(image, side)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])
        if orientation in SIDEWAYS:
            width, height = height, width
        return DecodedImage(_to_square(image, side, resize_mode), (width, height), found_range)


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """Reduce a large picture to about four times the size that is needed, as far as its shorter side allows."""
    factors = [max(1, length // (4 * side)) for length in image.size]
    if image.width * image.height <= MOST_CONVERTED or factors == [1, 1]:
        return image
    if image.mode in ("P", "PA", "1"):  # numbers of colours, which have no mean
        return image.resize((image.width // factors[0], image.height // factors[1]), Image.Resampling.NEAREST)
    return image.reduce((factors[0], factors[1]))


def _scale_grey(
    image: Image.Image, grey_range: tuple[float, float], clear: float | None = None
) -> tuple[Image.Image, tuple[float, float] | None]:
    """Scale grey of 16 bits or floats to 8 bits, and return it with its lowest and highest value.

    What is no number, or a mark for missing values such as -3.4e38, counts as the nearer end of the range.

    Args:
        image: of mode I or F.
        grey_range: the values that become 0 and 255.
        clear: the value that a PNG calls transparent, which becomes white.
    """
    import numpy as np

    given, (low, high) = np.asarray(image), grey_range
    scaled, lowest, highest = np.empty(given.shape, np.uint8), math.inf, -math.inf
    rows = max(1, MOST_CONVERTED // given.shape[1])  # at a time, as floats take room
    for row in range(0, len(given), rows):
        pixels = given[row : row + rows].astype(np.float64)
        see_through = pixels == clear
        if (known := pixels[(np.abs(pixels) < NO_VALUE) & ~see_through]).size:
            lowest, highest = min(lowest, known.min()), max(highest, known.max())
        pixels = np.nan_to_num((pixels - low) * (255 / max(high - low, 1e-9)), posinf=255, neginf=0)
        scaled[row : row + rows] = np.where(see_through, 255, pixels.clip(0, 255))
    return Image.fromarray(scaled), (float(lowest), float(highest)) if lowest <= highest else None


def _to_square(image: Image.Image, side: int, resize_mode: str) -> Image.Image:
    width, height = image.size
    if resize_mode == "pad" and width != height:
        scale = side / max(width, height)
        inside = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
        square = Image.new("RGB", (side, side), (PAD_GREY, PAD_GREY, PAD_GREY))
        square.paste(inside, ((side - inside.width) // 2, (side - inside.height) // 2))
        return square
    box = (0, 0, width, height)
    if resize_mode == "crop" and width != height:
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
    if image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def _png_pixels(content: bytes) -> bytes:
    """Keep the chunks that the PNG specification calls critical, and transparency; the header once."""
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind in (b"IDAT", b"PLTE", b"tRNS") or (kind == b"IHDR" and len(kept) == 1):
            kept.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])


def _jpeg_pixels(content: bytes) -> bytes:
    """Remove the application segments from a JPEG, except Adobe's, which says how its colours are stored."""
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])[0]
        if marker == 0xDA:  # the pixels
            break
        if not 0xE0 <= marker <= 0xEF or marker == 0xEE:
            kept.append(content[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, content[at:]])
