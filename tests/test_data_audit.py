"""Test the audit of a data set: pytest tests/test_data_audit.py"""

import csv
import html
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import cnnlab
from cnnlab.cli import main
from cnnlab.data.folder_layout import find_layout
from cnnlab.data_audit import audit
from cnnlab.evaluation import audit_report, html_pages
from cnnlab.evaluation.label_issues import FOLDS, check_labels, compact, strangeness

NAMES = ("<b>", "'&'", *"2345678", "=9")  # of the digits' folders
SWAPPED = 15


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory):
    """`(folder, swapped, bad)`: 400 digits in class folders, 15 of them in a wrong one; a copy of one, and one under
    another label; a picture of noise, and a text that is called a picture.
    """
    top = tmp_path_factory.mktemp("data") / "<i>digits"
    digits, rng, swapped = load_digits(), np.random.default_rng(0), []
    for i in range(400):
        wrong = i % (400 // SWAPPED) == 0 and len(swapped) < SWAPPED
        label = (digits.target[i] + (1 + rng.integers(9) if wrong else 0)) % 10
        file = Path(NAMES[label], f"{i:04}.png")
        if wrong:
            swapped.append(str(file))
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).resize((32, 32)).save(top / file)
    first, other = sorted((top / "3").iterdir())[:2]
    shutil.copy(first, top / "3" / "copy.png")
    shutil.copy(other, top / "4" / "twice.png")
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(top / "7" / "noise.png")
    (top / "5" / "bad.png").write_text("a text")
    return top, swapped


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small network with random weights, as a file."""
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    for filters in (16, 64):
        x = keras.layers.Conv2D(filters, 3, strides=3, activation="relu")(x)
    path = tmp_path_factory.mktemp("backbone") / "small.keras"
    keras.Model(images, keras.layers.Reshape((-1, 1, 64))(x)).save(path)
    return str(path)


def rows_of(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


class Page(HTMLParser):
    """What a page holds; its tags are closed in the order in which they were opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_swapped_labels_are_found():
    digits, rng = load_digits(), np.random.default_rng(1)
    labels, swapped = digits.target.astype(np.int64), rng.permutation(len(digits.target))[:SWAPPED]
    labels[swapped] = (labels[swapped] + 1 + rng.integers(9, size=SWAPPED)) % 10
    labels[labels == 9] = 11  # 9 has no picture, and two of 10 are too few
    labels[np.flatnonzero(labels == 8)[:2]] = 10
    check = check_labels(compact(digits.data.astype("float32")), labels, 12)
    assert check.rare == (10,)
    assert len(set(swapped) & set(check.issues.tolist())) >= 10
    assert len(check.issues) <= 40
    own = check.probabilities[check.issues, labels[check.issues]]
    assert (np.diff(own) >= 0).all()
    assert (check.suggested[check.issues] != labels[check.issues]).all()
    assert np.isnan(check.probabilities[labels == 10]).all()
    assert check.agreement > 0.9
    assert check_labels(digits.data[:8], labels[:8], 12) is None


def test_the_strangest_is_far_from_its_class():
    rng = np.random.default_rng(0)
    features = rng.normal([[5, 0, 0]], 0.1, (30, 3)).astype("float32")
    features[7] = (0, 0, 5)
    labels = np.repeat([0, 1, 2], (20, 9, 1))
    distances = strangeness(features, labels)
    assert distances[:20].argmax() == 7
    assert distances[7] == pytest.approx(1, abs=0.05)
    assert np.isnan(distances[29])
    assert not np.isnan(distances[:29]).any()


def test_a_folder_is_audited(digit_files, backbone, store, monkeypatch, capfd):
    top, swapped = digit_files
    monkeypatch.setattr(sys, "argv", ["cnnlab", "audit", str(top), "--out", "report", "--backbone", backbone])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert "5/bad.png (it is not in an image format)" in out
    issues = rows_of("report/label_issues.csv")
    columns = ["file", "part", "class", "suggested_class", "probability", "suggested_probability", "score"]
    assert list(issues[0]) == columns
    found = {row["file"].removeprefix("'") for row in issues}
    assert len(found & set(swapped)) >= 11
    assert len(found) <= 70
    assert [row["probability"] for row in issues] == sorted(row["probability"] for row in issues)
    pairs = rows_of("report/duplicates.csv")
    assert [(row["kind"], row["first_class"], row["second_class"]) for row in pairs[:1]] == [("same", "3", "4")]
    assert {"3/copy.png", "4/twice.png"} <= {row["second"] for row in pairs if row["kind"] == "same"}
    assert rows_of("report/left_out.csv") == [
        {"file": "5/bad.png", "reason": "does not decode: it is not in an image format"}
    ]
    counts = {row["class"]: row for row in rows_of("report/classes.csv")}
    assert set(counts) == {"'=9", *NAMES[:-1]}
    assert sum(int(row["train"]) for row in counts.values()) == 403
    assert counts["5"]["do_not_decode"] == "1"
    strange = rows_of("report/strangest.csv")
    assert "7/noise.png" in {row["file"] for row in strange} | found
    assert len(strange) == 4 * len(NAMES)
    text = Path("report/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"<b>", "'&'"} <= set(page.texts)
    assert not {"b", "i", "script", "link"} & {tag for tag, _ in page.tags}
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) >= len(issues) + 2 * len(pairs)
    assert all(re.fullmatch(r"data:image/png;base64,[\w+/=]+", source) for source in sources)
    assert not re.search(r"https?://|@import|url\(", text)
    [run] = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.run_id in out
    assert str(Path("report").resolve()) in out
    assert run.data.tags["cnnlab.kind"] == "audit"
    assert run.data.metrics["label_issues"] == len(issues)
    names = {file.path for file in store.list_artifacts(run.info.run_id)}
    assert names == {*audit_report.FILES, audit_report.LABEL_ISSUES_FIGURE}
    with pytest.raises(cnnlab.ArgumentError, match="an audit"):
        cnnlab.tracking.run_queries.find_finished_run(run.info.run_id)


@pytest.fixture
def recipe(backbone):
    return cnnlab.Recipe("transfer", dataset="digits", backbone=backbone, limit=100)


def test_a_named_set_has_positions_for_files(recipe, store, capsys):
    done = audit(recipe)
    assert done.folder == Path("audit-digits").resolve()
    counts = rows_of("audit-digits/classes.csv")
    assert sum(int(row["train"]) for row in counts) == 100
    assert "8 x 8" in Path("audit-digits/report.html").read_text(encoding="utf-8")
    files = [row["file"] for row in rows_of("audit-digits/strangest.csv")]
    named = cnnlab.load_dataset("digits", image_size=32, val_fraction=0)
    limited = cnnlab.load_dataset("digits", image_size=32, limit=100, for_audit=True)
    for position, file in enumerate(limited.pictures.files):
        part, index = file.split("/")
        assert (getattr(named, part).images[int(index)] == limited.pictures.stored.pixels[position]).all()
    assert set(files) <= set(limited.pictures.files)


def test_only_an_earlier_report_is_replaced_and_by_a_whole_one(recipe, store, workplace, monkeypatch):
    audit(recipe, "report")
    first = Path("report/report.html").stat().st_mtime_ns
    audit(recipe, "report")
    assert Path("report/report.html").stat().st_mtime_ns > first
    before = sorted(path.name for path in workplace.iterdir())
    (workplace / "report/mine.txt").write_text("mine")
    (workplace / "other").mkdir()
    (workplace / "other/report.html").write_text("a report of somebody else's")
    (workplace / "file").write_text("a file")
    for folder, holds in (("report", "mine.txt"), ("other", "report.html"), ("file", "file")):
        with pytest.raises(cnnlab.ArgumentError, match=f"which holds {holds}"):
            audit(recipe, folder)
    with pytest.raises(cnnlab.ArgumentError, match="which cannot"):
        audit(recipe, "file/report")
    assert sorted(path.name for path in workplace.iterdir()) == sorted([*before, "other", "file"])
    (workplace / "report/mine.txt").unlink()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cnnlab.data_audit.run_logging.write_results", full)
    text = Path("report/report.html").read_text(encoding="utf-8")
    with pytest.raises(cnnlab.LabError, match="Received: No space left on device"):
        audit(recipe, "report")
    assert Path("report/report.html").read_text(encoding="utf-8") == text
    assert sorted(path.name for path in workplace.iterdir()) == sorted([*before, "other", "file"])


def test_a_store_that_may_only_be_read_gets_no_run(recipe, store, monkeypatch):
    monkeypatch.setattr("cnnlab.data_audit.mlflow_store.is_read_only", lambda: True)
    done = audit(recipe)
    assert done.run_id is None
    assert (done.folder / "report.html").is_file()
    assert not store.search_runs([e.experiment_id for e in store.search_experiments()])


def test_data_that_cannot_be_trained_on_are_audited(digit_files, backbone, store, workplace):
    top = digit_files[0]
    for name in ("3", "4"):
        shutil.copytree(top / name, workplace / "data" / "train" / name)
    (workplace / "data/train/empty").mkdir()
    for file in sorted((workplace / "data/train/4").iterdir())[FOLDS - 1 :]:
        file.unlink()
    shutil.copytree(top / "5", workplace / "data" / "test" / "5")
    recipe = cnnlab.Recipe("transfer", dataset="data", backbone=backbone)
    done = audit(recipe)
    said = "\n".join(done.lines)
    assert "classes in test that are not in train" in Path("audit-data/report.html").read_text()
    assert "data/train/empty" not in said
    assert {row["file"] for row in rows_of("audit-data/left_out.csv")} == {"train/empty", "test/5/bad.png"}
    assert "Not checked, with fewer than 5 pictures: 4." in said
    shutil.rmtree("data/test")
    shutil.rmtree("data/train/4")
    done = audit(recipe)
    assert "Labels: not checked, as fewer than two classes have 5 pictures." in done.lines
    assert len(rows_of("audit-data/strangest.csv")) == 4
    with pytest.raises(cnnlab.ArgumentError, match="at least two class folders"):
        find_layout("data", skip_empty=True)
    (workplace / "broken/a").mkdir(parents=True)
    (workplace / "broken/a/1.png").write_text("a text")
    done = audit(cnnlab.Recipe("transfer", dataset="broken", backbone=backbone))
    assert "  a/1.png (it is not in an image format)" in done.lines
    shutil.rmtree("data/train/3")
    with pytest.raises(cnnlab.ArgumentError, match="Received: none"):
        audit(recipe)


def test_random_weights_are_a_weak_check(store, capfd):
    recipe = cnnlab.Recipe("transfer", dataset="digits", backbone="vgg16", image_size=32, limit=60)
    done = audit(recipe)
    assert "the label check is weak" in capfd.readouterr().err
    assert any("weak" in line for line in done.lines)


def test_texts_of_a_page_are_escaped():
    nasty = '<script>"\x1b[31m&'
    template = """{% extends "page.html" %}{% from "macros.html" import cards, folded, paragraphs, table %}
        {% block sections %}{{ table((nasty,), [(nasty,)], nasty) }}{{ folded(nasty, [nasty]) }}
        {{ paragraphs([nasty]) }}{{ cards([([(pixels, nasty)], [nasty])]) }}{% endblock %}"""
    values = {"title": nasty, "headings": [nasty], "generator": nasty, "nasty": nasty}
    pixels = np.zeros((200, 300, 3), np.uint8)
    text = html_pages.environment().from_string(template).render(pixels=pixels, **values)
    page = Page(text)
    assert page.texts.count('<script>"\\x1b[31m&') == 9
    [image] = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == '<script>"\\x1b[31m&'
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert "class" not in image
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\x1b" not in text
    assert html.unescape(html.escape('<script>"\\x1b[31m&')) in page.texts
