"""Test loading folders of images in the layouts that people use: pytest tests/data/test_image_folder.py"""

import errno
import os
import shutil
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab.data.folder_layout import find_layout, natural
from cnnlab.data.folder_scan import describe_left_out
from tests.helpers.pictures import encoded, fill, picture


def load(folder, **options):
    return cnnlab.load_dataset(folder, image_size=8, **options)


def counts(dataset):
    return len(dataset.train), len(dataset.val), len(dataset.test)


def said(dataset):
    return " ".join(dataset.summary.lines)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val"])
def test_a_validation_folder_is_the_validation_set(name, workplace):
    fill("data/train", ["cat", "dog"], 10)
    fill(f"data/{name}", ["cat", "dog"], 4, 100)
    fill("data/test", ["cat", "dog"], 3, 200)
    d = load("data")
    assert counts(d) == (20, 8, 6)
    assert f"{name}/ is the validation set" in said(d)
    assert "20 training, 8 validation and 6 test pictures" in said(d)
    shutil.rmtree("data/test")
    d = load("data")
    assert counts(d) == (16, 8, 4)
    assert "4 of 20 pictures (20%) are held out as the test set, as it has none" in said(d)
    d = load("data", val_fraction=0)
    assert d.val is d.test
    assert "8 validation pictures, as val_fraction is 0" in said(d)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TRAIN", "TEST"),
        ("train_images", "test-images"),
        ("data/train", "data/test"),
        ("a/b/Train", "a/b/Test"),
    ],
)
def test_splits_are_found_by_their_usual_folder_names(train, test, workplace):
    fill(f"lab/{train}", ["glioma", "pituitary"], 10)
    fill(f"lab/{test}", ["glioma", "pituitary"], 3, 100)
    d = load("lab")
    assert d.class_names == ("glioma", "pituitary")
    assert counts(d) == (18, 2, 6)
    assert "training set" in said(d) or train in ("data/train",)


def test_pictures_without_labels_are_said_and_not_used(workplace):
    fill("fruits/Training", ["Apple", "Banana"], 10)
    fill("fruits/Test", ["Apple", "Banana"], 3, 100)
    fill("fruits", ["test-multiple_fruits", "papers"], 5, 200)
    d = load("fruits")
    assert d.class_names == ("Apple", "Banana")
    assert "5 files in test-multiple_fruits/ without labels" in said(d)
    assert "5 files in papers/, which is neither train, val nor test" in said(d)
    fill("plain", ["Apple", "Banana", "test"], 5)
    d = load("plain")
    assert d.class_names == ("Apple", "Banana")
    assert "5 files in test/ without labels" in said(d)


def test_a_class_may_be_called_train_among_others(workplace):
    fill("vehicles", ["bus", "car", "train"], 6)
    assert load("vehicles").class_names == ("bus", "car", "train")
    fill("places", ["bus_station", "train_station", "test_track"], 6)
    assert load("places").class_names == ("bus_station", "test_track", "train_station")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test"], "Received: pictures without class folders"),
        (["test/cat", "test/dog"], "Put the training pictures into train/"),
        (["train/cat", "train/dog", "training/cat", "training/dog"], "train/ and training/. Move one of them away"),
        (["train/cat", "train/dog", "bus/red", "bus/blue"], "Received: bus/, train/"),
        (["cat"], "only 'cat'"),
    ],
)
def test_an_ambiguous_layout_gives_a_sentence(folders, message, workplace):
    fill("data", folders, 4)
    with pytest.raises(cnnlab.ArgumentError, match=message) as caught:
        load("data")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_pictures_are_counted(workplace):
    fill("data/train", ["cat", "dog"], 6)
    fill("data/test", ["cat", "dog"], 2, 100)
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        fill("data/train/cat", [hidden], 2, 300)
    fill("data/mlruns", ["artifacts"], 3, 400)
    (workplace / "data/mlruns/mlflow.db").touch()
    (workplace / "data/train/cat/.DS_Store").touch()
    (workplace / "data/train/cat/notes.txt").write_text("hello")
    (workplace / "data/train/dog/gone.png").symlink_to(workplace / "nowhere.png")
    (workplace / "data/train/dog/again").symlink_to(workplace / "data/train")
    os.mkfifo(workplace / "data/train/dog/pipe.png")
    picture(0, 999).save(workplace / "data/lost.png")
    d = load("data")
    assert d.class_names == ("cat", "dog")
    assert sum(counts(d)) == 16
    for part in (
        *("2 files in hidden folders", "2 files in folders @eaDir", "2 files in folders __MACOSX"),
        *("4 files in mlruns, the folder of a tool", "1 hidden file in train/cat/", "1 .txt in train/cat/"),
        *("1 dangling link in train/dog/", "1 circular link in train/dog/", "1 special file in"),
        "1 picture outside of class folders",
    ):
        assert part in said(d), part
    assert "  train/cat/notes.txt\n" in d.summary.text


def test_pictures_are_known_by_their_content(workplace):
    fill("data", ["bird", "cat"], 6, ending="jpg")
    for i, file in enumerate(sorted((workplace / "data/bird").iterdir())):
        file.rename(file.with_suffix((".jfif", ".JPG", "", ".dat", ".jpg", ".tiff")[i]))
    assert sum(counts(load("data"))) == 12


def test_a_class_without_pictures_is_named(workplace):
    fill("data", ["bird", "cat"], 6)
    (workplace / "data/dog").mkdir()
    for i in range(20):
        (workplace / f"data/dog/IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    with pytest.raises(cnnlab.ArgumentError, match=r"dog/ without any that can be read \(20 .heic in dog/\)"):
        load("data")
    d = load("data", skip_bad=True)
    assert d.class_names == ("bird", "cat")
    assert "20 .heic in dog/, 1 class folder without pictures" in said(d)


def test_linked_classes_and_pictures_are_followed(workplace):
    fill("store", ["cat", "dog", "more"], 5)
    (workplace / "data/cat").mkdir(parents=True)
    for i in range(5):
        (workplace / f"data/cat/{i}.png").symlink_to(workplace / f"store/cat/000{i}.png")
    (workplace / "data/cat/more").symlink_to(workplace / "store/more")
    (workplace / "data/dog").symlink_to(workplace / "store/dog")
    d = load("data", val_fraction=0)
    assert np.bincount(np.concatenate([d.train.labels, d.test.labels])).tolist() == [10, 5]


def test_numbers_are_ordered_as_numbers(workplace):
    fill("data", [str(i) for i in range(1, 13)], 4)
    assert load("data").class_names == tuple(str(i) for i in range(1, 13))
    assert sorted(["b10", "b9", "a", "B"], key=natural) == ["B", "a", "b9", "b10"]


def test_unicode_forms_are_one_class_and_cases_are_shown(workplace):
    fill("accents/train", [unicodedata.normalize("NFC", "église"), "maison"], 6)
    fill("accents/test", [unicodedata.normalize("NFD", "église"), "maison"], 2, 100)
    d = load("accents")
    assert d.class_names == ("maison", unicodedata.normalize("NFC", "église"))
    assert len(d.test) == 4
    assert "2 Unicode forms" in said(d)
    fill("case/train", ["Cat", "Dog"], 4)
    fill("case/test", ["cat", "dog"], 2, 100)
    with pytest.raises(cnnlab.ArgumentError, match=r"'cat' \(train has 'Cat'\)"):
        load("case")
    fill("both", ["Cat", "cat", "dog"], 4)
    assert "upper and lower case only: Cat, cat" in said(load("both"))


def test_names_that_cannot_be_shown_are_escaped(workplace):
    raw = os.fsencode(workplace) + b"/data/caf\xe9"
    fill("data", ["dog", "a\x1b[31mb"], 5)
    os.makedirs(raw)
    for i in range(5):
        with open(raw + b"/%d.png" % i, "wb") as file:
            file.write(encoded(picture(2, i), "PNG"))
    d = load("data")
    assert d.class_names == ("a\\x1b[31mb", "caf\\udce9", "dog")
    d.summary.text.encode()


@pytest.mark.parametrize("rare", [1, 2, 3, 4])
def test_a_rare_class_is_in_every_part_or_named(rare, workplace):
    fill("data", ["common", "rare", "usual"], [60, rare, 60])
    d = load("data")
    have = [int((part.labels == 1).sum()) for part in (d.train, d.val, d.test)]
    assert sum(have) == rare
    assert have[0] >= 1
    assert rare - have[0] <= rare / 2
    assert ("'rare' has" in said(d)) == (0 in have) == (rare < 4)
    assert "balanced class_weights" in said(d)


def test_small_classes_are_held_out_by_the_fractions_or_it_is_said(workplace):
    fill("data", [f"c{i:02}" for i in range(20)], 3)
    d = load("data")
    assert counts(d) == (43, 5, 12)
    assert np.bincount(d.train.labels).min() == 2
    assert "Note: 12 of 60 pictures (20%) are held out as the test set" in said(d)
    assert "15 of 20 classes have no validation picture: " in said(d)
    assert "8 of 20 classes have no test picture: " in said(d)
    assert "hold_out_every_class would hold out" in said(d)
    d = load("data", test_fraction=0.4)
    assert counts(d) == (36, 4, 20)
    assert "20 of 60 pictures (33%) are held out as the test set, as it has none, where test_fraction is 0.4" in said(d)
    d = load("data", val_fraction=0.3)
    assert counts(d) == (40, 8, 12)
    assert "8 of 48 pictures (17%) are held out for validation, where val_fraction is 0.3, as small classes" in said(d)
    d = load("data", hold_out_every_class=True)
    assert counts(d) == (20, 20, 20)
    assert "20 of 60 pictures (33%) are held out as the test set, as it has none, where test_fraction is 0.2" in said(d)
    assert "20 of 40 pictures (50%) are held out for validation, where val_fraction is 0.1" in said(d)


def test_a_test_fraction_is_checked_and_said_where_it_is_not_used(workplace):
    fill("data/train", ["cat", "dog"], 10)
    fill("data/test", ["cat", "dog"], 2, 100)
    assert "test_fraction is not used, as there is a test set" in said(load("data", test_fraction=0.3))
    assert "test_fraction is not used" in said(cnnlab.load_dataset("digits", limit=50, test_fraction=0.3))
    for fraction in (0, 1, float("nan")):
        with pytest.raises(cnnlab.ArgumentError, match="test_fraction to be above 0 and below 1"):
            load("data", test_fraction=fraction)


def test_all_bad_files_are_named_at_once_or_left_out(workplace):
    fill("data", ["Cat", "Dog"], 8, ending="jpg")
    (workplace / "data/Cat/666.jpg").write_bytes(b"")
    (workplace / "data/Cat/404.jpg").write_text("<!doctype html>")
    (workplace / "data/Dog/0003.jpg").write_bytes(encoded(picture(1, 3, (300, 200)))[:-200])
    with pytest.raises(cnnlab.LabError, match="Received 3 that do not decode") as caught:
        load("data")
    assert all(name in str(caught.value) for name in ("Cat/666.jpg (it is empty)", "Cat/404.jpg", "Dog/0003.jpg"))
    assert caught.value.exit_code == 1
    d = load("data", skip_bad=True)
    assert sum(counts(d)) == 15
    assert "3 files without a picture that decodes" in said(d)
    assert min(part.images.max() for part in (d.train, d.val, d.test)) > 0


def test_labels_of_a_file(workplace):
    fill("data", ["a", "b"], 6)
    rows = [f"{name}/{i:04}.png,{'cat' if i % 2 else 'dog'}" for name in ("a", "b") for i in range(6)]
    for i, head in enumerate(["filename,label\n", "image,split,class\n", ""]):
        used = [row.replace(",", ",train," if n < 9 else ",test,") for n, row in enumerate(rows)] if i == 1 else rows
        (workplace / "labels.csv").write_text(head + "\n".join([*used, used[0].replace("a/0000", "a/none")]))
        d = load("data", labels="labels.csv", val_fraction=0)
        assert d.class_names == ("cat", "dog")
        assert "1 row of labels.csv without a picture" in said(d)
    assert sum(counts(d)[::2]) == 12
    names = [f"{i:04}" for i in range(6)]
    (workplace / "labels.csv").write_text("id;breed\n" + "\n".join(f"{n};{'x' if n > '0002' else 'y'}" for n in names))
    with pytest.raises(cnnlab.ArgumentError, match=r"which is a/0000.png and b/0000.png"):
        load("data", labels="labels.csv")
    shutil.rmtree("data/b")
    assert load("data", labels="labels.csv", val_fraction=0).class_names == ("x", "y")
    (workplace / "labels.csv").write_text("0000,x\n0000,y\n0001,y\n")
    with pytest.raises(cnnlab.ArgumentError, match=r"one label and one split.*x of train and, in row 2, y"):
        load("data", labels="labels.csv")
    (workplace / "labels.csv").write_text("id,size,colour\n1,2,3\n")
    with pytest.raises(cnnlab.ArgumentError, match=r"to name pictures of .* values such as '1', '2', '3'"):
        load("data", labels="labels.csv")


def test_a_table_may_begin_with_the_folder_itself_and_means_one_file_in_any_case(workplace):
    fill("data", ["a", "b"], 3)
    rows = [f"data/{name}/{i:04}.png,{'cat' if name == 'a' else 'dog'},train" for name in "ab" for i in range(3)]
    (workplace / "labels.csv").write_text("\n".join(rows))  # no header: its first row is a picture
    assert find_layout("data", labels="labels.csv").labels.tolist() == [0, 0, 0, 1, 1, 1]
    picture(0, 9).save("data/a/x.png")
    picture(0, 8).save("data/a/X.png")
    (workplace / "labels.csv").write_text("\n".join([*rows, "a/x.png,cat,train", "a/X.png,dog,train"]))
    layout = find_layout("data", labels="labels.csv")
    assert dict(zip(layout.files, layout.labels.tolist(), strict=True))["a/X.png"] == 1
    (workplace / "labels.csv").write_text("\n".join([*rows, "A/x.PNG,cat,train"]))
    with pytest.raises(cnnlab.ArgumentError, match=r"which is a/X.png and a/x.png"):
        find_layout("data", labels="labels.csv")


def test_class_ids_are_replaced_by_their_names(workplace):
    fill("data", ["n02084071", "n02121808"], 6)
    (workplace / "names.csv").write_text("id,name\nn02084071,dog\nn02121808,cat\n")
    assert load("data", class_names="names.csv").class_names == ("cat", "dog")
    (workplace / "names.csv").write_text("n02084071,dog\n")
    d = load("data", class_names="names.csv")
    assert d.class_names == ("dog", "n02121808")
    assert "has no name for: n02121808" in said(d)
    fill("kinds", ["photo", "drawing"], 6)
    (workplace / "names.csv").write_text("photo,photograph\ndrawing,sketch\n")  # no header: its first row is a class
    assert load("kinds", class_names="names.csv").class_names == ("photograph", "sketch")
    with pytest.raises(cnnlab.ArgumentError, match="with a folder of pictures"):
        load("digits", class_names="names.csv")


def test_duplicates_are_counted_and_dropped(workplace):
    fill("data/train", ["early", "late"], 12)
    fill("data/test", ["early", "late"], 4, 100)
    for i in range(3):
        shutil.copy(f"data/train/early/000{i}.png", f"data/test/early/copy{i}.png")
    shutil.copy("data/train/late/0000.png", "data/test/early/other.png")
    shutil.copy("data/train/early/0010.png", "data/train/late/again.png")
    near = np.asarray(picture(1, 5)).astype(int) + 2  # as if it had been saved anew
    Image.fromarray(near.clip(0, 255).astype(np.uint8)).save("data/test/late/near.png")
    d = cnnlab.load_dataset("data", image_size=16, val_fraction=0)
    assert "4 pictures in train and in test, pixel by pixel" in said(d)
    assert "1 picture of nearly the same look in train and in test" in said(d)
    assert "2 pictures under two labels" in said(d)
    rows = d.summary.tables["duplicates.csv"].splitlines()
    assert rows[0] == "kind,first,first_part,first_class,second,second_part,second_class"
    assert "near,test/late/near.png,test,late,train/late/0005.png,train,late" in rows
    assert len(rows) == 7
    without = cnnlab.load_dataset("data", image_size=16, val_fraction=0, drop_duplicates=True)
    assert counts(without)[0] == 25 - 7
    assert "7 duplicate pictures of the training set" in said(without)
    again = {image.tobytes() for image in without.train.images} & {image.tobytes() for image in without.test.images}
    assert not again


def test_a_folder_with_the_name_of_a_set_is_said(workplace):
    fill("digits", ["a", "b"], 4)
    d = cnnlab.load_dataset("digits", limit=50)
    assert d.source == "sklearn/digits"
    assert "the dataset ./digits is the folder" in said(d)
    assert load("./digits").class_names == ("a", "b")


def test_what_was_left_out_is_told_in_words():
    left_out = {".heic": ["dog/a", "dog/b"], "in hidden folders": ["x/.a/b"], "hidden files": [".a", "b/.c"]}
    assert describe_left_out(left_out) == "2 .heic in dog/, 1 file in hidden folders, 2 hidden files"
    assert describe_left_out({}) == ""


def test_a_layout_is_listed_once(workplace):
    fill("data", ["a", "b"], 4)
    layout = find_layout("data")
    shutil.rmtree("data/b")
    assert layout.class_names == ("a", "b")
    with pytest.raises(cnnlab.LabError, match="4 that do not decode"):
        cnnlab.load_dataset(layout, image_size=8)


def test_a_folder_around_the_parts_is_found_beside_others(workplace):
    fill("all/data/train", ["cat", "dog"], 6)
    fill("all/data/test", ["cat", "dog"], 2, 100)
    fill("all", ["docs"], 3, 200)
    d = load("all")
    assert d.class_names == ("cat", "dog")
    assert "3 files in docs/, beside data/ with its splits" in said(d)
    fill("by_class/cat", ["train", "test"], 4)
    fill("by_class/dog", ["train", "test"], 4)
    with pytest.raises(cnnlab.ArgumentError, match="cat/ and dog/ with a train folder each"):
        load("by_class")
    fill("plants/color", ["apple", "grape"], 4)
    fill("plants/grey", ["apple", "grape"], 4)
    assert "folders inside of a class belong to it, such as apple/ to color" in said(load("plants"))


def test_the_only_folder_inside_a_class_is_not_a_class(workplace):
    fill("data/train", ["cat", "dog"], 6)
    fill("data/val/cat", ["dog"], 3, 100)
    d = load("data")
    assert d.val.labels.tolist() == [0, 0, 0]
    assert "no validation pictures of dog" in said(d)


def test_test_pictures_in_a_folder_without_classes(workplace):
    fill("data/train", ["cat", "dog"], 6)
    fill("data/test", ["test"], 3, 100)
    d = load("data")
    assert "3 files in test/ without labels" in said(d)
    assert d.class_names == ("cat", "dog")


def test_a_row_for_another_folder_means_no_file_here(workplace):
    fill("data", ["A"], 4)
    for i in range(4):
        picture(1, i).save(f"data/{i + 10:04}.png")
    rows = [f"{i + 10:04}.png,cat" for i in range(4)] + [f"B/{i:04}.png,dog" for i in range(4)]
    (workplace / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(cnnlab.ArgumentError, match=r"only 'cat'.*4 rows of labels.csv without a picture"):
        load("data", labels="labels.csv")
    (workplace / "labels.csv").write_text("\n".join(rows).replace("B/", "data/A/"))
    assert load("data", labels="labels.csv").class_names == ("cat", "dog")


@pytest.mark.parametrize("label", ["y", "class", "id", "name", "label"])
def test_a_first_row_with_a_picture_is_no_header(label, workplace):
    fill("data", ["A"], 8)
    (workplace / "labels.csv").write_text("\n".join(f"{i:04}.png,{label if i % 2 else 'other'}" for i in range(8)))
    (workplace / "labels.csv").write_text("\n".join(f"{i:04}.png,{'other' if i % 2 else label}" for i in range(8)))
    assert sum(counts(load("data", labels="labels.csv", val_fraction=0))[::2]) == 8


def test_unknown_splits_of_a_table_are_counted_once(workplace):
    fill("data", ["A"], 9)
    rows = [f"{i:04}.png,{'cat' if i % 2 else 'dog'},{'train' if i < 6 else 'holdout'}" for i in range(9)]
    (workplace / "labels.csv").write_text("file,label,split\n" + "\n".join(rows))
    d = load("data", labels="labels.csv", val_fraction=0)
    assert "3 pictures that labels.csv gives without train, val or test as their split" in said(d)
    assert "does not name" not in said(d)
    (workplace / "names.csv").write_text("A,cat\nA,dog\n")
    with pytest.raises(cnnlab.ArgumentError, match="one name for each class"):
        load("data", class_names="names.csv")
    (workplace / "names.csv").write_text("")
    with pytest.raises(cnnlab.ArgumentError, match="an empty one"):
        load("data", class_names="names.csv")


def test_bad_files_are_left_out_of_rare_classes_and_of_splits(workplace):
    fill("data/train", ["cat", "dog"], 6)
    fill("data/test", ["cat", "dog"], 2, 100)
    for file in (workplace / "data/test/dog").iterdir():
        file.write_bytes(b"")
    d = load("data", skip_bad=True)
    assert "no test pictures of dog" in said(d)
    for file in (workplace / "data/test/cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(cnnlab.ArgumentError, match=r"Expected test pictures\. Received none that decode"):
        load("data", skip_bad=True)
    fill("rare", ["cat", "dog"], [30, 3])
    (workplace / "rare/dog/0001.png").write_bytes(b"")
    for seed in range(6):
        assert 1 in load("rare", skip_bad=True, seed=seed).train.labels


def test_a_limit_keeps_rare_classes_and_is_counted(workplace):
    fill("data", ["cat", "dog", "rare"], [40, 40, 1])
    d = load("data", limit=30)
    assert len(d.train) + len(d.val) == 30
    assert 2 in d.train.labels
    assert f"{81 - sum(counts(d))} pictures beyond the limit" in said(d)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_class_that_may_not_be_read_is_an_error(workplace):
    fill("data", ["cat", "dog", "eel"], 4)
    (workplace / "data/eel").chmod(0)
    try:
        with pytest.raises(cnnlab.ArgumentError, match=r"folders that cannot be read \(Permission denied\).*eel"):
            load("data")
        assert load("data", skip_bad=True).class_names == ("cat", "dog")
    finally:
        (workplace / "data/eel").chmod(0o755)


def test_names_that_are_shown_alike_are_not_made_one_class(workplace):
    fill("data", ["a\x1b", "a\\x1b", "b"], 4)
    with pytest.raises(cnnlab.ArgumentError, match=r"Received twice: a\\x1b. Rename"):
        load("data")


def test_a_table_may_write_names_in_another_case(workplace):
    fill("data", ["cat", "dog"], 6)
    files = sorted((workplace / "data").rglob("*.png"))
    rows = [f"{file.relative_to(workplace / 'data').as_posix().upper()},{file.parent.name}" for file in files]
    (workplace / "labels.csv").write_text("file,label\n" + "\n".join(rows))
    d = load("data", labels="labels.csv")
    assert sum(counts(d)) == 12
    assert "12 names of labels.csv are the files' in another case" in said(d)


def test_a_folder_that_may_not_be_read_is_an_error_with_a_table_too(workplace, monkeypatch):
    fill("data", ["cat", "dog", "eel"], 4)
    files = sorted((workplace / "data").glob("[cd]*/*.png"))
    (workplace / "labels.csv").write_text(
        "".join(f"{file.parent.name}/{file.name},{file.parent.name}\n" for file in files)
    )
    as_it_is = os.scandir

    def refused(path):
        if str(path).endswith("eel"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return as_it_is(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may read everything
    with pytest.raises(cnnlab.ArgumentError, match=r"folders that cannot be read \(Permission denied\).*eel"):
        load("data", labels="labels.csv")
    assert sum(counts(load("data", labels="labels.csv", skip_bad=True))) == 8


def test_loading_folders_that_link_to_one_another_ends(workplace):
    names = [f"class{i}" for i in range(8)]
    fill("data", names, 3)
    for one in names:
        for other in names:
            if one != other:
                (workplace / "data" / one / f"to_{other}").symlink_to(workplace / "data" / other)
    d = load("data", val_fraction=0)
    assert sum(counts(d)[::2]) == 8 * 8 * 3
    deep = workplace / "deep/cat"
    for _ in range(60):
        deep = deep / ("x" * 40)
    assert find_layout("data").class_names == tuple(names)


@pytest.mark.parametrize(
    "arguments",
    [{"seed": -1}, {"image_size": 0}, {"image_size": 1.5}, {"val_fraction": 1}, {"val_fraction": "a tenth"}],
)
def test_wrong_arguments_get_a_sentence(arguments, workplace):
    fill("data", ["cat", "dog"], 4)
    with pytest.raises(cnnlab.ArgumentError, match="Expected"):
        cnnlab.load_dataset("data", **{"image_size": 8, **arguments})
    for name in ("", "x" * 300):
        with pytest.raises(cnnlab.ArgumentError, match="Expected"):
            cnnlab.load_dataset(name)


def test_little_memory_is_kept_for_each_file_before_it_is_read(workplace):
    """Of 200,000 files, half a gigabyte of objects would be as much as all the rest of a training."""

    def kept(count):
        for number in range(count):
            path = Path(f"{count}/train/class{number % 4}/a_file_of_some_name_{number:06}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        tracemalloc.start()
        layout = find_layout(str(count))
        size, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(layout.files) == count
        return np.array([size, peak])

    kept(100)  # what a first call keeps for good
    size, peak = (kept(4000) - kept(1000)) / 3000
    assert size < 200  # bytes, the path itself being 90
    assert peak < 400
