"""Test how a table of labels is read: pytest tests/data/test_label_table.py"""

import numpy as np
import pytest

import cnnlab
from cnnlab.data.folder_scan import FolderScan
from cnnlab.data.label_table import assign_by_label_table
from cnnlab.data.table_columns import TableOptions
from cnnlab.data.table_file import read_rows
from tests.helpers.pictures import fill

COUNT = 24
FILES = [f"{i:03}.png" for i in range(COUNT)]
NAMES = ["dog", "cat"] * (COUNT // 2)  # of even and of odd pictures


@pytest.fixture
def assign(tmp_path):
    """A function that writes a table and assigns the pictures of a folder, `pics/000.png` to `pics/023.png`, by it."""

    def assign_by(head, row, encoding="utf-8", end="\n", files=FILES, **options):
        lines = ([] if head is None else [head]) + [row(i) for i in range(COUNT)]
        table = tmp_path / "labels.csv"
        table.write_bytes(end.join([*lines, ""]).encode(encoding))
        scan = FolderScan("/data/pics", files=np.array(files, object))
        return scan, assign_by_label_table(scan, str(table), TableOptions(**options))

    return assign_by


def classes(assigned):
    return [assigned.class_names[label] if label >= 0 else None for label in assigned.labels]


def splits(assigned):
    """The letter of each picture's split: t(r)ain, (v)al, t(e)st or - for none."""
    return "".join({"train": "r", "val": "v", "test": "e", "": "-"}[split] for split in assigned.splits)


@pytest.mark.parametrize(
    ("head", "row", "said"),
    [
        ("label,photo", lambda i: f"{NAMES[i]},{FILES[i]}", "column 'photo', labels those of 'label'"),
        ("diagnosis,image", lambda i: f"{NAMES[i]},{FILES[i]}", "'image', labels those of 'diagnosis'"),
        ("img,target", lambda i: f"{FILES[i]},{NAMES[i]}", "'img', labels those of 'target'"),
        (",file_name,what", lambda i: f"{23 - i:03},{FILES[i]},{NAMES[i]}", "columns left aside: unnamed"),
        ("id,breed", lambda i: f"{i:03},{NAMES[i]}", "'id', labels those of 'breed'"),
        ("name,id", lambda i: f"{NAMES[i]},{i:03}", "'id', labels those of 'name'"),
        ("path,label", lambda i: rf"pics\{FILES[i]},{NAMES[i]}", "'path'"),
        ("path,label", lambda i: f"/data/pics/{FILES[i]},{NAMES[i]}", "'path'"),
        ("path,label", lambda i: f"/home/me/images/{FILES[i]},{NAMES[i]}", "'path'"),
        ("path,label", lambda i: rf"C:\Users\me\{FILES[i]},{NAMES[i]}", "'path'"),
        ("url,label", lambda i: f"https://a.org/images/{FILES[i]},{NAMES[i]}", "'url'"),
        (
            "lesion_id,image_id,dx,age,sex",
            lambda i: f"HAM_{i // 2},{i:03},{NAMES[i]},{i}.5,{'f' if i % 3 else 'm'}",
            "columns left aside: lesion_id, age, sex",
        ),
        ("who,pic,what", lambda i: f"{i},{FILES[i]},{NAMES[i]}", "'pic', labels those of 'what'"),
        ("File,Finding Labels,Age", lambda i: f"{FILES[i]},{NAMES[i]},{i % 9}", "labels those of 'Finding Labels'"),
        ("mask,image,label", lambda i: f"{FILES[23 - i]},{FILES[i]},{NAMES[i]}", "columns left aside: mask"),
        ("class_id,class_name,file", lambda i: f"{i % 2},{NAMES[i]},{FILES[i]}", "columns left aside: class_id"),
        (None, lambda i: f"{NAMES[i]},{FILES[i]}", "column '2', labels those of '1'"),
        (None, lambda i: f"{FILES[i]} {NAMES[i]}", "column '1', labels those of '2'"),
        ("sep=;\nfile;label", lambda i: f"{FILES[i]};{NAMES[i]}", "'file'"),
        ('"file" "label"', lambda i: f'"{i}" "{FILES[i]}" "{NAMES[i]}"', "columns left aside: unnamed"),  # as R writes
    ],
)
def test_columns_are_found_by_content_and_said(head, row, said, assign):
    scan, assigned = assign(head, row)
    assert classes(assigned) == NAMES
    assert said in "; ".join(assigned.notes)
    assert not scan.left_out


def test_columns_are_named_by_hand(assign):
    row = lambda i: f"{i % 3},{FILES[i]},{NAMES[i]},{FILES[23 - i]}"  # noqa: E731
    with pytest.raises(cnnlab.ArgumentError, match=r"called label, class.*Received: who, what. Name it with label_col"):
        assign("who,pic,what,mask", row)
    assert classes(assign("who,pic,what,mask", row, label="What")[1]) == NAMES
    assert classes(assign("who,pic,what,mask", row, label="what", image="mask")[1]) == NAMES[::-1]
    assert classes(assign(None, row, label="3", image="4")[1]) == NAMES[::-1]
    with pytest.raises(cnnlab.ArgumentError, match="Expected label_column to be one of: who, pic, what, mask"):
        assign("who,pic,what,mask", row, label="wat")
    with pytest.raises(cnnlab.ArgumentError, match="Received: the same one twice"):
        assign("who,pic,what,mask", row, label="pic", image="pic")
    with pytest.raises(cnnlab.ArgumentError, match=r"to name pictures of '/data/pics'.*'x023.png', 'cat'"):
        assign("file,label", lambda i: f"x{FILES[i]},{NAMES[i]}")


def test_columns_that_name_as_many_pictures_are_told_apart_by_hand(assign):
    row = lambda i: f"{i:03},{23 - i:03},{NAMES[i]}"  # noqa: E731
    with pytest.raises(
        cnnlab.ArgumentError, match=r"Received: no and code, which name as many. Name it with image_col"
    ):
        assign("no,code,label", row)
    assert classes(assign("no,code,label", row, image="code")[1]) == NAMES[::-1]
    assert classes(assign("no,no again,label", lambda i: f"{i:03},{i:03},{NAMES[i]}")[1]) == NAMES


def test_folders_of_splits_are_said_to_be_mixed(assign):
    files = [f"{'train' if i < 12 else 'test'}/{i:03}.png" for i in range(COUNT)]
    row = lambda i: f"{files[i]},{NAMES[i]},{files[i].split('/')[0]}"  # noqa: E731
    _, assigned = assign("path,label,x", row, files=sorted(files))
    assert "pictures of test/ and train/ are not kept apart" in "; ".join(assigned.notes)
    _, assigned = assign("path,label,split", row, files=sorted(files))
    assert "kept apart" not in "; ".join(assigned.notes)


HALF, THIRD = "r" * 12, "r" * 8


@pytest.mark.parametrize(
    ("column", "value", "options", "expected"),
    [
        ("is_valid", lambda i: i < 8, {}, "v" * 8 + "r" * 16),
        ("valid", lambda i: int(i < 8), {}, "v" * 8 + "r" * 16),
        ("is_train", lambda i: i < 12, {}, HALF + "e" * 12),
        ("is_train,is_valid", lambda i: f"{int(i < 12)},{int(12 <= i < 20)}", {}, HALF + "v" * 8 + "e" * 4),
        ("split", lambda i: ["train", "Valid", "dev", "TEST"][i // 6], {}, "r" * 6 + "v" * 12 + "e" * 6),
        ("subset", lambda i: "train" if i < 12 else "testing", {}, HALF + "e" * 12),
        ("set", lambda i: "train" if i < 12 else "val", {}, HALF + "v" * 12),
        ("phase", lambda i: "train" if i < 12 else "val", {"split": "phase"}, HALF + "v" * 12),
        ("split", lambda i: "train" if i < 12 else "val", {"split": "none"}, "r" * 24),
        ("part", lambda i: "leaf" if i < 12 else "stem", {}, "r" * 24),
        ("fold", lambda i: i // 8, {"fold": "0"}, "v" * 8 + "r" * 16),
        ("fold", lambda i: f"{i // 8}.0", {"fold": "1"}, THIRD + "v" * 8 + THIRD),
        ("fold", lambda i: i // 8, {"split": "none"}, "r" * 24),
        (
            "split,fold",
            lambda i: f"{'train' if i < 12 else 'test'},{i // 8}",
            {"fold": "0"},
            "v" * 8 + "rrrr" + "e" * 12,
        ),
        ("split,fold", lambda i: f"{'train' if i < 12 else 'test'},{i // 8}", {}, HALF + "e" * 12),
        ("is_valid", lambda i: ("", "?")[i % 2] if i < 8 else "no", {}, "-" * 8 + "r" * 16),
        ("valid", lambda i: ("sure", "maybe")[i % 2], {}, "r" * 24),
    ],
)
def test_columns_of_splits_are_what_they_say(column, value, options, expected, assign):
    scan, assigned = assign(f"image,label,{column}", lambda i: f"{FILES[i]},{NAMES[i]},{value(i)}", **options)
    assert splits(assigned) == expected
    taken = all(name in "; ".join(assigned.notes[1:]) for name in column.split(","))
    assert taken
    left = [path for reason, paths in scan.left_out.items() if "as their split" in reason for path in paths]
    assert len(left) == expected.count("-")


@pytest.mark.parametrize(
    ("column", "value", "options", "message"),
    [
        ("split", lambda i: i % 2, {}, r"in the column 'split'.*Received: '0', '1'. Write them, call .* is_train"),
        ("set", lambda i: i < 8, {}, r"in the column 'set'.*Received: 'False', 'True'"),
        ("split", lambda i: "AB"[i % 2], {}, r"Received: 'A', 'B'.*split_column none"),
        ("phase", lambda i: "AB"[i % 2], {"split": "phase"}, r"in the column 'phase'"),
        ("is_valid", lambda i: "AB"[i % 2], {"split": "is_valid"}, r"in the column 'is_valid'"),
        ("fold", lambda i: i % 3, {}, r"Expected fold .* of the folds '0', '1', '2' in the column 'fold'.*none"),
        ("fold", lambda i: i % 3, {"fold": "7"}, r"Expected fold .*Received: 7"),
        ("x", lambda i: i % 3, {"fold": "0"}, r"Expected a column of folds"),
    ],
)
def test_an_unclear_column_of_splits_says_how_to_say_it(column, value, options, message, assign):
    with pytest.raises(cnnlab.ArgumentError, match=message):
        assign(f"image,label,{column}", lambda i: f"{FILES[i]},{NAMES[i]},{value(i)}", **options)


def labelled(assign, *labels):
    return assign("image,label", lambda i: f"{FILES[i]},{labels[i % len(labels)]}")


@pytest.mark.parametrize(
    ("labels", "expected", "said"),
    [
        (("0", "1", "0.0", "01"), {"0", "1"}, "'0' (6) = '0.0' (6), '1' (6) = '01' (6)"),
        (("0.0", "1.0"), {"0.0", "1.0"}, None),
        (("007", "008"), {"007", "008"}, None),
        (("-1", "1", "-1.0"), {"-1", "1"}, "'-1' (8) = '-1.0' (8)"),
        (("0", "-0", "0.5", ".50"), {"0", "0.5"}, "'0' (6) = '-0' (6), '0.5' (6) = '.50' (6)"),
        (("cat", "Cat ", "cat", "dog"), {"cat", "dog"}, "'cat' (12) = 'Cat' (6)"),
        (("polar  bear", "polar bear", "polar bear"), {"polar bear"}, "'polar  bear' (8) = 'polar bear' (16)"),
        (("a", "A"), {"a", "A"}, None),
        (("none", "scratch"), {"none", "scratch"}, None),
        (("1" * 30 + "1", "1" * 30 + "2"), {"1" * 30 + "1", "1" * 30 + "2"}, None),
    ],
)
def test_labels_in_two_spellings_are_one_class_and_counted(labels, expected, said, assign):
    _, assigned = labelled(assign, *labels)
    assert set(assigned.class_names) == expected == set(classes(assigned))
    notes = "; ".join(assigned.notes)
    assert (said or "each one class") in notes if said else "each one class" not in notes


def test_missing_labels_are_left_out_and_counted(assign):
    scan, assigned = labelled(assign, "cat", "NaN", "None", "?", "", "dog")
    assert classes(assigned) == ["cat", None, None, None, None, "dog"] * 4
    assert {reason: len(paths) for reason, paths in scan.left_out.items()} == {
        "pictures that labels.csv gives without a label": 4,
        "pictures that labels.csv gives without a label, but 'NaN'": 4,
        "pictures that labels.csv gives without a label, but 'None'": 4,
        "pictures that labels.csv gives without a label, but '?'": 4,
    }


PLANET = ("clear primary", "haze primary", "clear primary water", "haze primary water road", "clear primary road")
PLANET += ("haze primary road", "clear water primary road")


@pytest.mark.parametrize(
    "labels",
    [
        ("cat", "dog", "cat dog"),
        ("cat", "dog", "cat|dog"),
        ("Mass|Effusion", "Effusion|Hernia", "Mass|Hernia"),
        ("['cat']", "\"['cat', 'dog']\""),
        ("cat", "dog", '"dog, cat"'),
        PLANET,
    ],
)
def test_several_labels_of_a_picture_are_refused(labels, assign):
    with pytest.raises(cnnlab.ArgumentError, match=r"Expected one label for each picture in .*, which is '"):
        labelled(assign, *labels)


@pytest.mark.parametrize(
    "labels",
    [
        ("golden retriever", "labrador retriever", "golden eagle", "bald eagle"),
        ('"tench, Tinca tinca"', '"goldfish, Carassius auratus"', '"great white shark, man-eater"'),
        ("no tumor", "tumor"),
    ],
)
def test_class_names_of_several_words_are_one_label(labels, assign):
    assert set(labelled(assign, *labels)[1].class_names) == {label.strip('"') for label in labels}


def test_labels_that_no_two_pictures_share_are_refused(assign):
    with pytest.raises(cnnlab.ArgumentError, match=r"24 different ones of 24 pictures, such as '0.5'.* ranges"):
        assign("image,age", lambda i: f"{FILES[i]},{i}.5")


def test_columns_of_0_and_1_are_refused_unless_one_is_named(assign):
    row = lambda i: f"{FILES[i]},{float(i % 3 == 0)},{float(i % 3 == 1)},{float(i % 3 == 2)}"  # noqa: E731
    with pytest.raises(
        cnnlab.ArgumentError, match=r"one column with the label of each.*3 columns of 0 and 1: MEL, NV, BCC"
    ):
        assign("image,MEL,NV,BCC", row)
    assert set(assign("image,MEL,NV,BCC", row, label="NV")[1].class_names) == {"0.0", "1.0"}


@pytest.mark.parametrize(
    ("encoding", "delimiter", "end", "quote"),
    [
        ("utf-16", "\t", "\r\n", ""),
        ("utf-16-le", ";", "\r\n", '"'),
        ("utf-16-be", ",", "\n", ""),
        ("utf-8-sig", ";", "\r\n", '"'),
        ("utf-8", ",", "\r", ""),
        ("utf-8", ", ", "\n", '"'),
        ("utf-8", "|", "\n", ""),
    ],
)
def test_files_of_other_programs_are_read(encoding, delimiter, end, quote, assign):
    def row(*values):
        return delimiter.join(f"{quote}{value}{quote}" for value in values)

    _, assigned = assign(row("image", "label"), lambda i: row(FILES[i], NAMES[i] + "é"), encoding, end)
    assert classes(assigned) == [name + "é" for name in NAMES]


def test_values_with_delimiters_need_quotes(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('file,label\na.png,"cat, big\nand old"\nb.png,dog\nc.png,dog,,\n')
    assert read_rows(str(table))[1:3] == [["a.png", "cat, big\nand old"], ["b.png", "dog"]]
    table.write_text("file,label\na.png,cat\nb.png,dog, big\n")
    with pytest.raises(cnnlab.ArgumentError, match=r"Expected 2 columns in every row.*Received: 3 in row 3"):
        read_rows(str(table))


def test_a_data_set_is_loaded_by_a_table_with_its_columns_named(workplace):
    fill("pics", ["."], 20)
    rows = [f"{'ab'[i % 2]},{i < 8},{i % 5},{i:04}.png" for i in range(20)]
    (workplace / "labels.csv").write_text("\n".join(["kind,is_valid,fold,photo", *rows]))
    by_column = {"label_column": "kind", "image_column": "photo"}
    d = cnnlab.load_dataset("pics", image_size=8, labels="labels.csv", **by_column)
    assert (len(d.train), len(d.val), len(d.test)) == (10, 8, 2)
    assert "true in the column 'is_valid' means val; columns left aside: fold" in " ".join(d.summary.lines)
    d = cnnlab.load_dataset("pics", image_size=8, labels="labels.csv", fold=4, split_column="fold", **by_column)
    assert len(d.val) == 4
    for option in ("image_column", "label_column", "split_column", "fold"):
        with pytest.raises(cnnlab.ArgumentError, match=f"Expected labels, a CSV file, with {option}"):
            cnnlab.load_dataset("pics", image_size=8, **{option: "x"})
