"""Draw names of classes and files on Matplotlib figures: in fonts for any script, without mathtext, shortened."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from typing import IO

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from cnnlab.utils.log import log
from cnnlab.utils.text import escape_control_characters, shortened

NAME = 30  # characters of a name that there is room for
# For what matplotlib's own font lacks, where the system has them: of Linux, macOS and Windows.
FURTHER_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "IPAGothic", "IPAexGothic", "Unifont"),
    *("Arial Unicode MS", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Noto Emoji", "Symbola", "Segoe UI Emoji"),
)


@contextlib.contextmanager
def literal_texts() -> Iterator[None]:
    """Draw texts as they are written: without formulas, and in any script that the system has a font for."""
    installed = set(fontManager.get_font_names())
    families = [*rcParams["font.family"], *(name for name in FURTHER_FONTS if name in installed)]
    with rc_context({"text.parse_math": False, "text.usetex": False, "font.family": families}):
        yield


def save(figure: Figure, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a figure to a file; warn once a process, not for each one, of characters that no font has."""
    with literal_texts(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path)
    for warning in caught:
        if str(warning.message).startswith(("Glyph ", "Matplotlib currently does not support")):
            _warn_of_missing_fonts()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@functools.cache  # once a process
def _warn_of_missing_fonts() -> None:
    log.warning(
        "names hold characters that no font of this system has; figures show boxes for them (a package such "
        "as fonts-noto-cjk has many; remove matplotlib's cache after installing it)."
    )


def shorten_name(name: object, length: int = NAME) -> str:
    """Write a name on one line, in at most `length` characters."""
    return shortened(escape_control_characters(name), length)
