"""Test decoding one image file to pixels: pytest tests/data/test_decoding.py"""

import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cnnlab.data import decoding
from cnnlab.data.decoding import FORMATS, TURNS, UndecodableError, decode_bytes, decode_image
from tests.helpers.pictures import chunk, encoded, exif_block, picture, with_exif

TURNED = (0x0112, 3, 1, struct.pack("<H", 6))
BEHIND = 8 + 2 + 2 * 12 + 4  # where the data of a block with two entries starts
BROKEN_EXIF = {
    "not TIFF": b"\0\x08\0\x02\x01\x12\0\x03\0\0",
    "empty": b"",
    "short": b"II*\0",
    "text for a resolution": exif_block(TURNED, (0x011A, 2, 4, b"72\0")),
    "byte for a short": exif_block(TURNED, (0x0128, 1, 1, b"\2")),
    "divided by zero": exif_block(TURNED, (0x011A, 5, 1, struct.pack("<I", BEHIND)), extra=struct.pack("<II", 0, 0)),
    "far away": exif_block(TURNED, (0x010F, 2, 900, struct.pack("<I", 70_000))),
    "directory far away": exif_block(TURNED, (0x8769, 4, 1, struct.pack("<I", 99_999))),
    "unknown type": exif_block(TURNED, (0x0131, 99, 3, b"ab")),
    "no such turn": exif_block((0x0112, 3, 1, struct.pack("<H", 99))),
    "two turns": exif_block((0x0112, 3, 2, struct.pack("<HH", 6, 6)), (0x0131, 2, 3, b"ab")),
}


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "png", "webp", "bmp", "gif", "tif", "avif", "jp2", "ppm"])
def test_every_supported_format_is_decoded(suffix, workplace):
    path = workplace / f"x.{suffix}"
    Image.new("RGB", (20, 10), (200, 40, 90)).save(path)
    image = decode_image(path, 16)
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - (200, 40, 90)).max() <= 4


def test_formats_that_run_programs_are_not_read(workplace):
    assert not {"EPS", "WMF", "PDF", "MPEG", "HDF5"} & set(FORMATS)
    with pytest.raises(UndecodableError, match="not in an image format"):
        decode_image(encoded(Image.new("RGB", (8, 8)), "EPS"), 8)


def test_exif_orientation_is_respected(workplace):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(workplace / "x.png", exif=exif)
    image = decode_image(workplace / "x.png", 8)
    assert (image[:4] == 0).all()
    assert (image[4:] == 255).all()


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_does_not_prevent_decoding(name):
    """A good orientation beside broken tags still turns it: the red left half comes up."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = (255, 0, 0)
    image = decode_image(with_exif(encoded(Image.fromarray(pixels), quality=95), BROKEN_EXIF[name]), 16)
    turned = (image[:6, :, 0] > 200).all()
    assert turned == (name not in ("not TIFF", "empty", "short", "no such turn"))


@pytest.mark.parametrize("kind", ["large text", "large profile", "bad checksum", "tail", "second header", "no end"])
def test_broken_chunks_without_pixels_do_not_prevent_decoding(kind):
    image = picture(0, 1)
    png = encoded(image, "PNG")
    head, rest = png[:33], png[33:]
    large = zlib.compress(bytes(2_000_000))
    made = {
        "large text": head + chunk(b"zTXt", b"prompt\0\0" + large) + rest,
        "large profile": head + chunk(b"iCCP", b"profile\0\0" + large) + rest,
        "bad checksum": head + chunk(b"tEXt", b"a\0b")[:-1] + b"\0" + rest,
        "tail": png + bytes(1000),
        "second header": head + rest[:-12] + chunk(b"IHDR", b"") + rest[-12:],
        "no end": png[:-12],
    }
    assert (decode_image(made[kind], 16) == np.asarray(image)).all()


def test_every_colour_mode_is_converted_to_rgb(workplace):
    Image.new("L", (4, 4), 100).save(workplace / "grey.png")
    assert (decode_image(workplace / "grey.png", 4) == 100).all()
    Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(workplace / "grey16.png")
    assert (decode_image(workplace / "grey16.png", 4) == 100).all()
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(workplace / "transparent.png")
    assert (decode_image(workplace / "transparent.png", 4) == 255).all()
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(workplace / "clear16.png", transparency=300)
    assert (decode_image(workplace / "clear16.png", 4) == 255).all()
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(workplace / "cmyk.jpg")
    assert decode_image(workplace / "cmyk.jpg", 4).max() <= 2
    Image.new("1", (4, 4), 1).save(workplace / "bits.bmp")
    assert (decode_image(workplace / "bits.bmp", 4) == 255).all()


def test_grey_of_16_bits_by_a_range_of_its_own():
    grey = encoded(Image.fromarray(np.full((4, 4), 2048, np.uint16)), "PNG")
    assert (decode_image(grey, 4) == 7).all()
    assert (decode_image(grey, 4, grey_range=(0, 4095)) == 127).all()
    assert (decode_image(grey, 4, grey_range=(2048, 4095)) == 0).all()


@pytest.mark.parametrize(
    ("fit", "left", "middle", "top"),
    [("stretch", (255, 0, 0), (0, 255, 0), None), ("crop", (0, 255, 0), (0, 255, 0), None), ("pad", 255, 255, 128)],
)
def test_a_wide_picture_becomes_a_square(fit, left, middle, top):
    """Thirds of red, green and blue, three times as wide as high."""
    pixels = np.zeros((10, 30, 3), np.uint8)
    for i in range(3):
        pixels[:, 10 * i : 10 * i + 10, i] = 255
    image = decode_image(encoded(Image.fromarray(pixels), "PNG"), 30, resize_mode=fit)
    assert image.shape == (30, 30, 3)
    if fit == "pad":
        assert (image[:10] == top).all()
        assert (image[20:] == top).all()
        assert image[15, 2, 0] == image[15, 15, 1] == image[15, 27, 2] == 255
    else:
        assert image[15, 2].tolist() == list(left)
        assert image[15, 15].tolist() == list(middle)


def test_large_pictures_are_read_within_a_bound():
    large = Image.new("RGB", (4000, 3000), (200, 120, 40))
    jpeg, png = encoded(large), encoded(large, "PNG")
    bound = {"most_pixels": 4_000_000}
    assert np.abs(decode_image(jpeg, 64, **bound).astype(int) - (200, 120, 40)).max() <= 3  # at an eighth
    with pytest.raises(UndecodableError, match=r"4000 x 3000 pixels, and at most 4 million"):
        decode_image(png, 64, **bound)
    assert np.abs(decode_image(png, 64).astype(int) - (200, 120, 40)).max() == 0


def test_pillows_limit_on_pixels_does_not_apply(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(encoded(picture(0, 0), "PNG"), 8).shape == (8, 8, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_mutated_files_decode_or_give_a_sentence(capfd):
    """2,000 of them; `tests/stress/mutated_files.py` tries more."""
    chance, made = random.Random(0), []
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112], exif[0x011A] = 6, 72.5
        options = {"exif": exif} if file_format in ("PNG", "JPEG", "WEBP", "TIFF") else {}
        made.append(encoded(picture(1, 1, (40, 30)), file_format, **options))
    decoded = 0
    for i in range(2000):
        content = bytearray(made[i % len(made)])
        if chance.random() < 0.4:
            del content[chance.randrange(len(content)) :]
        else:
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            assert decode_image(bytes(content), 16).shape == (16, 16, 3)
            decoded += 1
        except UndecodableError:
            continue
    capfd.readouterr()  # libtiff's own words
    assert 500 < decoded < 1500


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("file_format", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_orientations_of_all_formats(orientation, file_format):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    turned = np.asarray(image.transpose(TURNS[orientation]).resize((32, 32)).convert("L"))
    received = decode_image(encoded(image, file_format, exif=exif), 32, resize_mode="stretch")[..., 0]
    assert np.abs(received.astype(int) - turned).mean() < 8


def test_values_that_mark_no_data_do_not_move_the_range():
    grey = np.full((4, 4), 0.5, np.float32)
    for mark in (np.inf, -np.inf, np.nan, -3.4e38):
        grey[0, 0] = mark
        decoded = decode_bytes(encoded(Image.fromarray(grey), "TIFF"), "x", 4, grey_range=(0, 1))
        assert decoded.grey_range == (0.5, 0.5)
        assert np.asarray(decoded.image)[2, 2].tolist() == [127] * 3


def test_what_is_not_a_file_or_too_large_is_not_read(workplace, monkeypatch):
    os.mkfifo("pipe.png")
    with pytest.raises(UndecodableError, match="it is no file"):
        decode_image("pipe.png", 8)
    picture(0, 0).save("x.png")
    monkeypatch.setattr(decoding, "MOST_BYTES", 10)
    with pytest.raises(UndecodableError, match=r"bytes, and at most 10 are read"):
        decode_image("x.png", 8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "1"])
def test_a_large_picture_is_made_smaller_first(mode, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_CONVERTED", 1000)
    for size in ((400, 400), (40, 4000), (4000, 40)):
        image = Image.new("I;16", size, 30_000) if mode == "I;16" else Image.new("L", size, 117).convert(mode)
        received = decode_image(encoded(image, "PNG"), 16)
        assert received.shape == (16, 16, 3)
        if mode != "1":
            assert np.abs(received.astype(int) - 117).max() <= 1
