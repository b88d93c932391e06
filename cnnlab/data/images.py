"""One picture file to uint8 pixels.

The decoding workers import this module, and start the sooner for NumPy being imported in functions only.
"""

from PIL import Image, ImageOps

from cnnlab.errors import LabError


def decode_image(file, image_size):
    """One picture of any format, size and colour mode as `(image_size, image_size, 3) uint8`.

    EXIF orientation is respected, transparency is laid on white, of an animation the first frame is taken, and the
    picture is stretched to the square.

    Raises:
        LabError: the file does not decode as an image.
    """
    import numpy as np

    return np.asarray(decode(file, image_size))


def decode(file, image_size) -> Image.Image:
    """`decode_image`, as a Pillow image of mode RGB."""
    try:
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16-bit grey: convert() would clip it, not scale it
                import numpy as np

                image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            if image.mode != "RGB":
                image = image.convert("RGB")
            if image.size != (image_size, image_size):
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "it is not in an image format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise LabError(
            f"Expected '{file}' to be an image. Received a file that does not decode: {reason}. Repair or remove it."
        ) from error
