"""Test that names which people give are printed on the screen as they are, without control characters."""

import csv
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from cnnlab import LabError, classify
from cnnlab.cli import main
from cnnlab.cli.tables import print_results, print_versions
from cnnlab.tracking.model_registry import Version

CLASSES = ("[bold]x[/]", "\x1b[31mred", ":cat: 猫")
FILES = ["=1+1.png", "[red]a[|].png", "猫猫.png", "new\nline.png", os.fsdecode(b"caf\xe9.png")]


@pytest.fixture
def tables(capsys, monkeypatch, workplace):
    """The outputs of `cnnlab predict` for pictures that are called so, by a model with such classes."""
    (workplace / "shots").mkdir()
    for name in FILES:
        Image.new("RGB", (8, 8)).save(workplace / "shots" / name)
    (workplace / "shots" / "\x1b[1mbroken.png").write_text("no picture")

    class Model:
        def predict_on_batch(self, images):
            return np.tile(np.float32([0.5, 0.3, 0.2]), (len(images), 1))

    monkeypatch.setattr(classify, "load_classifier", lambda model: classify.Classifier("uri", Model(), CLASSES, 8))

    def run(file_format):
        monkeypatch.setattr(sys, "argv", ["cnnlab", "predict", "shots", "--format", file_format])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 1  # for the broken one
        return capsys.readouterr()

    return run


def test_predictions_show_every_name_on_its_line(tables):
    out, err = tables("table")
    lines = out.splitlines()
    assert len(lines) == len(FILES)
    assert all(line.endswith(r"  [bold]x[/] 50.0%  \x1b[31mred 30.0%  :cat: 猫 20.0%") for line in lines)
    assert [line.split("  ")[0] for line in lines] == [
        *("shots/=1+1.png", "shots/[red]a[|].png", r"shots/caf\udce9.png", r"shots/new\nline.png", "shots/猫猫.png")
    ]
    wide, plain = lines[-1], lines[0]
    assert wide.index("[bold]") + 2 == plain.index("[bold]")  # two characters that are twice as wide
    assert len(err.splitlines()) == 1
    assert err.startswith(r"error: Expected 'shots/\x1b[1mbroken.png' to be an image")


def test_predictions_in_files_hold_whole_names(tables):
    rows = list(csv.DictReader(io.StringIO(tables("csv").out)))
    assert {row["file"] for row in rows} >= {r"shots/new\nline.png", r"shots/caf\udce9.png", "shots/猫猫.png"}
    assert {row["class_2"] for row in rows} == {r"\x1b[31mred"}
    answers = json.loads(tables("json").out)
    assert {answer["file"] for answer in answers} == {f"shots/{name}" for name in FILES}
    assert [one["class"] for one in answers[0]["predictions"]] == list(CLASSES)


def test_tables_print_no_markup(capsys):
    names = ["[bold]a[/]", "[/red]", ":cat:", "\x1b[31mred", "w" * 240]
    print_versions([Version(name, 1, "0" * 32, ("champion",), {"test_accuracy": "0.5"}) for name in names])
    out = capsys.readouterr().out
    assert all(name in out for name in [*names[:3], r"\x1b[31mred"])
    assert "\x1b" not in out
    assert out.partition("Left out")[0].count("w") == 240
    assert out.count("champion") == len(names)


def test_errors_are_one_line_whatever_file_they_name():
    assert str(LabError("no '\x1b[1m\n'")) == r"no '\x1b[1m\n'"


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_any_name_can_be_printed_in_any_encoding(variables):
    script = (
        "import sys, click; from cnnlab.cli import main\n"
        "@main.cli.command()\n"
        "def say(): print('猫', '\\udce9', 'end')\n"
        "sys.argv = ['cnnlab', 'say']; main.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={**environment, **variables}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(rb"\udce9 end" + os.linesep.encode())


@pytest.mark.parametrize("width", [10, 40, 60, 80, 100, 250])
def test_figures_and_names_are_whole_at_any_width(width, capsys, monkeypatch):
    """A column without room is left out as a whole, and the table says so."""
    monkeypatch.setenv("COLUMNS", str(width))
    # Each in a script of its own, so that what belongs to it is known from line to line.
    cyrillic, wide, greek, armenian = ("".join(map(chr, range(a, a + 32))) for a in (0x430, 0x4E00, 0x3B1, 0x561))
    scores = {"accuracy": 0.9876, "balanced_accuracy": 0.5432, "macro_f1": 0.4321, "top5_accuracy": 1.0}
    test = SimpleNamespace(interval=(0.9512, 1.0), scores=scores)
    sizes = {"params": 14_848_586, "trainable_params": 1_212_121, "train_seconds": 98765.4}
    results = [SimpleNamespace(test=test, test_loss=123.4567, **sizes, run_id=run_id) for run_id in (greek, armenian)]
    print_results(results, (cyrillic, wide), "on a data set")
    table, _, left_out = capsys.readouterr().out.partition("Left out")
    for name in (cyrillic, wide, greek, armenian):
        assert "".join(character for character in table if character in name) == name
    figures = {
        **{"test accuracy": "98.76%", "95 % interval": "95.1-100.0", "balanced accuracy": "54.32%"},
        **{"macro F1": "43.21%", "top 5": "100.00%", "test loss": "123.4567", "parameters": "14,848,586"},
        **{"trainable": "1,212,121", "train seconds": "98765.4"},
    }
    named = " ".join(left_out.split())
    for column, figure in figures.items():
        assert table.count(figure) == (0 if column in named else 2), column
    assert named.count(", ") == {10: 8, 40: 8, 60: 7, 80: 6, 100: 3, 250: 0}[width]
    assert all(cell_len(line) <= max(width, 24) for line in table.splitlines())
