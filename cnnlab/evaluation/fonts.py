"""Names of people's on figures: as they are, in any script, and no longer than there is room for."""

import contextlib
import functools
import warnings

from matplotlib import rc_context, rcParams
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
def as_written():
    """Texts on figures are names: no formulas in them, and in any script that the system has a font for."""
    there = set(fontManager.get_font_names())
    families = [*rcParams["font.family"], *(name for name in FURTHER_FONTS if name in there)]
    with rc_context({"text.parse_math": False, "text.usetex": False, "font.family": families}):
        yield


def save(figure, path) -> None:
    """Write a figure to a file; of characters that no font has it is said once, not for each one and each figure."""
    with as_written(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path)
    for warning in caught:
        if str(warning.message).startswith(("Glyph ", "Matplotlib currently does not support")):
            _say_missing()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@functools.cache  # once a process
def _say_missing():
    log.warning(
        "names hold characters that no font of this system has; figures show boxes for them (a package such "
        "as fonts-noto-cjk has many; remove matplotlib's cache after installing it)."
    )


def fitting(name, length=NAME) -> str:
    """A name on one line, in at most so many characters."""
    return shortened(escape_control_characters(name), length)
