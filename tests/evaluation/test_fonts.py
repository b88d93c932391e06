"""Test figures with class names of other scripts: pytest tests/evaluation/test_fonts.py"""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from cnnlab.evaluation import fonts, plots

NAMES = [r"$a$ \foo", r"$\frac{$", "a_b^2 100 % {x} #", "<b>it's</b> [bold]", "_hidden"]
MATRIX = np.eye(len(NAMES), dtype=int)
SCORES = np.linspace(0.1, 0.9, len(NAMES))
HISTORY = {name: [0.5, 0.6] for name in ("accuracy", "val_accuracy", "loss", "val_loss")}


def texts_of(figure):
    """What a figure says once it is drawn; an error of drawing is raised."""
    fonts.save(figure, io.BytesIO())
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.confusion_matrices({NAMES[0]: MATRIX}, NAMES),
        lambda: plots.class_scores(SCORES, SCORES, NAMES),
        lambda: plots.image_grid(np.zeros((5, 4, 4, 3), np.uint8), NAMES, NAMES[0]),
        lambda: plots.accuracy_by_seconds({name: (i, 0.5, 0.4, 0.6) for i, name in enumerate(NAMES)}),
        lambda: plots.scores_by_hyperparameter({"kind": NAMES}, list(SCORES), "val_accuracy"),
        lambda: plots.parallel_coordinates({"kind": NAMES}, list(SCORES), "val_accuracy"),
    ],
)
def test_names_are_drawn_as_they_are(draw, recwarn):
    figure = draw()
    assert set(NAMES) <= set(texts_of(figure))
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())
    assert [str(warning.message) for warning in recwarn] == []


def test_a_legend_leaves_no_name_out():
    texts = texts_of(plots.curves(dict.fromkeys(NAMES, HISTORY)))
    assert {f"{name} {part}" for name in NAMES for part in ("training", "validation")} <= set(texts)


def test_logarithmic_scales_are_labelled_without_formulas():
    rates = [1e-4, 1e-3, 5e-3, 1e-2, 2e-2]
    texts = texts_of(plots.scores_by_hyperparameter({"learning_rate": rates}, list(SCORES), "val_accuracy"))
    assert not any("$" in text for text in texts)
    assert "1e\u221203" in texts


def test_long_names_are_shortened_and_leave_room():
    names = ["w" * 240 + "1", "w" * 240 + "2"]
    figure = plots.confusion_matrices({"cnn": np.eye(2, dtype=int)}, names)
    texts = texts_of(figure)
    assert "w" * 20 + "…" + "w" * 8 + "1" in texts
    [axis] = figure.axes
    assert axis.get_position().width > 0.2
    assert max(map(len, texts)) <= fonts.NAME


def test_control_characters_are_drawn_as_escapes(recwarn):
    texts = texts_of(plots.class_scores(SCORES[:2], SCORES[:2], ["\x1b[31mred\n", "caf\udce9"]))
    assert {r"\x1b[31mred\n", r"caf\udce9"} <= set(texts)
    assert not list(recwarn)


def test_missing_glyphs_are_said_once(capsys, recwarn):
    fonts._warn_of_missing_fonts.cache_clear()
    for _ in range(2):
        texts_of(plots.class_scores(SCORES[:2], SCORES[:2], ["\U0010fffc", "\U0010fffd"]))  # in no font
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: names hold characters that no font of this system has")
    assert not list(recwarn)


def test_glyphs_are_of_whatever_font_of_the_system_has_them(monkeypatch, capsys):
    fonts._warn_of_missing_fonts.cache_clear()
    name = "\u27e6\u2a0c\u29e6"  # the last one is in STIX, which comes with matplotlib, and not in its usual font
    monkeypatch.setattr(fonts, "FURTHER_FONTS", ("No such font", "STIXGeneral"))
    texts_of(plots.class_scores(SCORES[:2], SCORES[:2], [name, "b"]))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fonts, "FURTHER_FONTS", ())
    texts_of(plots.class_scores(SCORES[:2], SCORES[:2], [name, "b"]))
    assert "no font" in capsys.readouterr().err
