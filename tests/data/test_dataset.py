"""Test loading data sets: splits, limits, digests, downloads and errors: pytest tests/data/test_dataset.py"""

import dataclasses
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab.utils import downloads
from tests.helpers.pictures import fill, picture


def test_digits_shapes_and_range():
    d = cnnlab.load_dataset("digits", val_fraction=0.1)
    assert d.train.images.shape == (1294, 32, 32, 3)
    assert d.val.images.shape == (144, 32, 32, 3)
    assert d.test.images.shape == (359, 32, 32, 3)
    assert d.train.images.dtype == np.uint8
    assert d.train.labels.dtype == np.int64
    assert (d.train.images.min(), d.train.images.max()) == (0, 255)
    assert (d.train.images[..., 0] == d.train.images[..., 2]).all()  # grey became RGB
    assert d.class_names == tuple("0123456789")


def test_split_is_stratified_seeded_and_disjoint():
    a, b = (cnnlab.load_dataset("digits", val_fraction=0.2, seed=seed) for seed in (0, 1))
    again = cnnlab.load_dataset("digits", val_fraction=0.2, seed=0)
    counts = np.bincount(a.val.labels)
    whole = np.bincount(np.concatenate([a.train.labels, a.val.labels]))
    assert np.abs(counts - 0.2 * whole).max() <= 1
    assert (a.val.images == again.val.images).all()
    assert not (a.val.images == b.val.images).all()
    assert len(a.train.labels) + len(a.val.labels) == 1438


def test_digest_names_the_content_not_the_split():
    a = cnnlab.load_dataset("digits", val_fraction=0.1)
    assert cnnlab.load_dataset("digits", val_fraction=0).digest == a.digest
    assert cnnlab.load_dataset("digits", val_fraction=0.3, seed=5).digest == a.digest
    assert cnnlab.load_dataset("digits", limit=500).digest != a.digest
    assert cnnlab.load_dataset("digits", image_size=16).digest != a.digest
    assert len(a.digest) == 64


def test_identity_names_the_pictures_whatever_their_size():
    a = cnnlab.load_dataset("digits")
    at_16 = cnnlab.load_dataset("digits", image_size=16)
    for name in ("train", "val", "test"):
        assert getattr(at_16, name).identity == getattr(a, name).identity
        assert getattr(at_16, name).digest != getattr(a, name).digest
    assert len({a.train.identity, a.val.identity, a.test.identity, a.identity}) == 4
    others = cnnlab.load_dataset("digits", val_fraction=0.3, seed=5)
    assert (at_16.identity, others.identity) == (a.identity, a.identity)
    assert others.val.identity != a.val.identity
    assert cnnlab.load_dataset("digits", limit=500).identity != a.identity


def test_identity_of_a_folder_is_that_of_its_files(workplace):
    fill("birds", ["robin", "wren"], 20)
    fill("other", ["robin", "wren"], 20)
    a = cnnlab.load_dataset("birds", image_size=8)
    for again in (
        cnnlab.load_dataset("birds", image_size=8),
        cnnlab.load_dataset("birds", image_size=12, resize_mode="pad"),
        cnnlab.load_dataset("other", image_size=16, drop_duplicates=True),
    ):
        assert again.identity == a.identity
        assert (again.train.identity, again.val.identity) == (a.train.identity, a.val.identity)
    picture(0, 99).save("other/robin/0003.png")
    assert cnnlab.load_dataset("other", image_size=8).identity != a.identity
    (workplace / "birds/wren/0005.png").rename("birds/robin/0019b.png")
    assert cnnlab.load_dataset("birds", image_size=8).identity != a.identity


def test_val_fraction_zero_validates_on_the_test_set():
    d = cnnlab.load_dataset("digits", val_fraction=0)
    assert d.val_is_test
    assert d.val.images is d.test.images
    assert len(d.train.labels) == 1438


def test_limit_is_stratified_and_shrinks_the_test_set_in_proportion():
    d = cnnlab.load_dataset("digits", limit=719, val_fraction=0)
    assert len(d.train.labels) == 719
    assert len(d.test.labels) == 180  # 359 * 719 / 1438
    assert np.ptp(np.bincount(d.train.labels)) <= 6
    # One below the whole leaves too few for a stratified rest, and still works.
    assert len(cnnlab.load_dataset("digits", limit=1437, val_fraction=0).train.labels) == 1437


def test_folder_with_train_and_test(picture_folder):
    d = cnnlab.load_dataset(picture_folder, image_size=8, val_fraction=0)
    assert d.name == "pictures"
    assert d.class_names == ("blue", "red")
    assert d.train.labels.tolist() == [0] * 6 + [1] * 6
    assert d.train.images[0, 3, 3].tolist() == [0, 0, 255]
    assert d.test.images[3, 0, 0].tolist() == [1, 1, 1]
    assert d.test.images[3, 3, 3].tolist() == [255, 0, 0]


def test_folder_of_classes_gets_a_stratified_test_set(picture_folder):
    d = cnnlab.load_dataset(picture_folder / "train", image_size=8, val_fraction=0)
    assert np.bincount(d.train.labels).tolist() == [5, 5]
    assert np.bincount(d.test.labels).tolist() == [1, 1]


def test_many_files_decode_in_parallel_in_order(workplace):
    for name in ("a", "b"):
        (workplace / "many" / name).mkdir(parents=True)
        for i in range(1300):
            pixel = np.full((2, 2, 3), (i % 256, i // 256, ord(name)), np.uint8)
            Image.fromarray(pixel).save(workplace / "many" / name / f"{i:04}.bmp")
    d = cnnlab.load_dataset(workplace / "many", image_size=2, val_fraction=0)
    assert len(d.train.labels) == 2080
    assert (d.train.images[:, 0, 0, 2] == np.where(d.train.labels == 0, ord("a"), ord("b"))).all()


def test_source_survives_a_move_and_tells_other_files_apart(picture_folder, workplace):
    before = cnnlab.load_dataset(picture_folder, image_size=8)
    moved = shutil.move(picture_folder, workplace / "elsewhere")
    assert cnnlab.load_dataset(moved, image_size=8).source == before.source
    shutil.copy(workplace / "elsewhere/train/red/0.png", workplace / "elsewhere/train/red/9.png")
    assert cnnlab.load_dataset(moved, image_size=8).source != before.source


def test_an_unknown_data_set_is_answered_with_the_nearest_name():
    with pytest.raises(cnnlab.ArgumentError, match=r"Received: 'cifar01'. Did you mean 'cifar10'"):
        cnnlab.load_dataset("cifar01")


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _text_as_jpg(folder):
    (folder / "train/red/notes.jpg").write_text("hello")


def _truncated(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "train/red/t.jpg")
    content = (folder / "train/red/t.jpg").read_bytes()
    (folder / "train/red/t.jpg").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "message", "status"),
    [
        (shutil.rmtree, "existing folder", 2),
        (_empty, "at least two class folders", 2),
        (lambda f: shutil.rmtree(f / "train/red"), "only 'blue'", 2),
        (lambda f: shutil.move(f / "test/red", f / "test/green"), "'green' in test only", 2),
        (_text_as_jpg, r"notes.jpg \(it is not in an image format\)", 1),
        (_truncated, r"t.jpg \(.*truncated", 1),
    ],
)
def test_unusable_folders_get_one_sentence(picture_folder, damage, message, status):
    damage(picture_folder)
    with pytest.raises(cnnlab.LabError, match=message) as caught:
        cnnlab.load_dataset(str(picture_folder), image_size=8)
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"val_fraction": 1.5}, {"val_fraction": float("nan")}, {"limit": 9}])
def test_impossible_splits_are_refused(arguments):
    with pytest.raises(cnnlab.ArgumentError, match="Expected"):
        cnnlab.load_dataset("digits", **arguments)


def test_default_falls_back_to_digits_with_a_warning(capsys):
    d = cnnlab.load_dataset()
    assert (d.name, d.stands_in_for) == ("digits", "cifar10")
    assert "warning: cifar10 cannot be downloaded" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_a_named_set_that_cannot_be_downloaded_is_an_error(name):
    with pytest.raises(cnnlab.LabError, match=f"Expected to download {name}. Received: "):
        cnnlab.load_dataset(name)


def test_silent_host_does_not_hang(monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []
        threading.Thread(target=lambda: kept.append(server.accept()), daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(cnnlab.LabError, match="Expected to download cifar10"):
            cnnlab.load_dataset("cifar10")
        assert time.monotonic() - started < 10
    assert socket.getdefaulttimeout() is None


def test_keras_loader_output_is_used(monkeypatch):
    """What keras.datasets gives (labels in a column) becomes flat labels, named classes and the asked size."""
    import keras

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6)[:, None]
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((images, labels), (images[:20], labels[:20])))
    d = cnnlab.load_dataset("cifar10", val_fraction=0)
    assert d.source == "keras.datasets/cifar10"
    assert d.class_names[3] == "cat"
    assert (d.train.images == images).all()
    assert (d.identity, d.train.identity) == (d.digest, d.train.digest)  # not resized, so hashed once
    assert cnnlab.load_dataset("cifar10", val_fraction=0, image_size=16).identity == d.identity
    assert d.train.labels.shape == (60,)
    assert dataclasses.asdict(d)["stands_in_for"] is None
