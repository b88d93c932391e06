"""Test reports and model cards with names that hold Markdown, commas and control characters."""

import csv
import html
import io
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt

import cnnlab
from cnnlab.evaluation import comparison_report, model_card, predictions
from cnnlab.evaluation.predictions import Predictions, load_predictions, save_predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.tuning.search_report import trials_report
from cnnlab.utils.text import markdown

NAMES = ("=1+1", "@a|b", r"$x$ \y_z", '<b>"a", *c*', "-1", "[d](e)", "1e5", "猫")
CELLS = ["'=1+1", "'@a|b", *NAMES[2:]]  # quoted where a spreadsheet would compute
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def result():
    """A run of a model and data with such names, as it is read back."""
    rng = np.random.default_rng(0)
    part = Predictions(rng.dirichlet(np.ones(len(NAMES)), 40).astype("float32"), np.arange(40) % len(NAMES), "digest")
    return RunResult(
        **{
            "recorded_id": "0123456789abcdef",
            "name": "cnn on =x|y",
            "recipe": cnnlab.Recipe("cnn", dataset="=x|y").with_defaults(),
        },
        **{"dataset_name": "=x|y", "class_names": NAMES, "history": {}, "test": part, "validation": part},
        **{
            "params": 10,
            "trainable_params": 10,
            "train_seconds": 1.0,
            "total_seconds": 1.0,
            "recorded_model_uri": None,
        },
    )


def test_tables_of_classes_hold_no_formulas(result):
    images = np.zeros((40, 8, 8, 3), np.uint8)
    rows = rows_of(predictions.describe("cnn", NAMES, images, result.test)[1]["class_scores.csv"])
    assert [row["class"] for row in rows] == CELLS
    assert sum(int(row["test_images"]) for row in rows) == 40
    assert [float(row["recall"]) for row in rows] == pytest.approx(result.test.by_class[1], abs=1e-4)


def test_comparisons_and_searches_hold_no_formulas(result, monkeypatch):
    monkeypatch.setattr(cnnlab.Recipe, "label", "=cmd|x_y")
    said, _, texts = comparison_report.comparison([result])
    [row] = rows_of(texts["comparison.csv"])
    assert (row["label"], row["model"]) == ("'=cmd|x_y", "'=cmd|x_y")
    assert float(row["test_accuracy"]) == round(result.test_accuracy, 4)
    rendered = html.unescape(MARKDOWN.render(texts["verdicts.md"]))
    assert rendered.endswith(f"<ul>\n<li>{said[0]}</li>\n</ul>\n")
    assert f"\n| {markdown('=cmd|x_y')} | {result.test_accuracy:.2%} |" in texts["verdicts.md"]
    trial = {"trial": 0, "status": "FAILED", "score": -0.5, "run_id": None, "kind": "=1+1", "learning_rate": 0.1}
    [row] = rows_of(trials_report([trial], SimpleNamespace(objective="val_loss"))[2]["trials.csv"])
    assert row == {
        **{"trial": "0", "status": "FAILED", "score": "-0.5", "run_id": ""},
        **{"kind": "'=1+1", "learning_rate": "0.1"},
    }


def test_model_cards_show_names_as_they_are(result):
    tags = {"validation": "held out", "dataset_digest": "digest"}
    page = MARKDOWN.render(model_card.model_card(result, tags))
    assert "<h1>cnn on =x|y</h1>" in page
    assert "<strong>=x|y</strong>" in page
    assert f"8 classes: {html.escape(', '.join(NAMES))}" in page
    by_class, confusion = re.findall("<table>.*?</table>", page, flags=re.DOTALL)
    cells = [html.unescape(cell) for cell in re.findall("<t[hd]>(.*?)</t[hd]>", confusion)]
    rows = [cells[i : i + 9] for i in range(0, len(cells), 9)]
    assert rows[0] == ["true \\ predicted", *NAMES]
    assert [row[0] for row in rows[1:]] == list(NAMES)
    assert [list(map(int, row[1:])) for row in rows[1:]] == result.test.confusion.tolist()
    assert {html.unescape(cell) for cell in re.findall("<tr>\n<td>(.*?)</td>", by_class)} == set(NAMES)


def test_stored_predictions_keep_every_name(result, tmp_path):
    others = (os.fsdecode(b"caf\xe9"), "\x1b[31m\n", " a ", "e\u0301", "w" * 240, "", "'", '"')
    for names in (NAMES, others):
        save_predictions(tmp_path / "p.npz", names, test=result.test, val=result.test)
        assert load_predictions(tmp_path / "p.npz")[0] == names
