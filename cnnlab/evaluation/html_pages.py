"""Render Jinja2 templates as self-contained HTML files: text is escaped, pictures are embedded, no scripts run."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cnnlab.utils.text import escape_control_characters

SIDE = 160  # pixels of a picture in a page at most
SMALL = 64  # pixels a side, up to which every one of them is kept


def render(template: str, **values: Any) -> str:
    """Render the file `template` of the folder templates with these values."""
    return environment().get_template(template).render(**values)


def environment() -> Environment:
    """Return the Jinja2 environment whose templates escape texts for HTML, and control characters as `\\x1b`."""
    loaded = Environment(
        loader=PackageLoader(__package__ or "cnnlab.evaluation"),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else escape_control_characters(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loaded.globals |= {"data_uri": data_uri, "is_small": is_small}
    return loaded


def is_small(pixels: npt.NDArray[np.uint8]) -> bool:
    """Return whether every pixel of a picture `(H, W, 3) uint8` is to be seen in a page."""
    return max(pixels.shape[:2]) <= SMALL


def data_uri(pixels: npt.NDArray[np.uint8], side: int = SIDE) -> str:
    """Encode a picture `(H, W, 3) uint8` as a `data:` address, scaled down to at most `side` pixels a side."""
    image, data = Image.fromarray(pixels), io.BytesIO()
    kind = "PNG" if is_small(pixels) else "JPEG"
    image.thumbnail((side, side))
    image.save(data, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
