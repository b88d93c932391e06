"""Test loading the built-in data sets at another image size: pytest tests/data/test_resizing.py"""

import numpy as np
import pytest

import cnnlab
from cnnlab.data import resizing
from cnnlab.data.disk_rows import MappedRows
from cnnlab.training.frozen_layers import _image_digests


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(resizing, "IN_MEMORY", 1000)


def arrays(dataset):
    return {part: np.asarray(getattr(dataset, part).images[:]) for part in ("train", "val", "test")}


def test_a_named_set_too_large_for_memory_is_read_from_the_disk_and_is_the_same(workplace, monkeypatch):
    in_memory = cnnlab.load_dataset("digits", image_size=20, limit=200)
    monkeypatch.setattr(resizing, "IN_MEMORY", 1000)
    on_disk = cnnlab.load_dataset("digits", image_size=20, limit=200)
    assert isinstance(in_memory.train.images, np.ndarray)
    for part, expected in arrays(in_memory).items():
        mapped = getattr(on_disk, part)
        assert isinstance(mapped.images, MappedRows)
        assert (mapped.images[:] == expected).all()
        assert mapped.digest == getattr(in_memory, part).digest
        assert (_image_digests(mapped.images) == _image_digests(expected)).all()
    assert on_disk.digest == in_memory.digest


def test_a_named_set_is_resized_once(workplace, small_memory, monkeypatch):
    first = cnnlab.load_dataset("digits", image_size=20, limit=200)
    monkeypatch.setattr(resizing, "resize_to_rgb", lambda images, side: pytest.fail("resized again"))
    again = cnnlab.load_dataset("digits", image_size=20, limit=200, val_fraction=0.3)
    assert again.digest == first.digest
    assert len(again.val) == 60


def test_a_pass_that_was_killed_goes_on(workplace, small_memory, monkeypatch):
    monkeypatch.setattr(resizing, "BYTES_AT_ONCE", 50 * 20 * 20 * 3)
    as_it_is, passes = resizing.resize_to_rgb, []

    def killed(images, side):
        passes.append(len(images))
        if len(passes) == 3:
            raise KeyboardInterrupt
        return as_it_is(images, side)

    monkeypatch.setattr(resizing, "resize_to_rgb", killed)
    with pytest.raises(KeyboardInterrupt):
        cnnlab.load_dataset("digits", image_size=20, limit=201, seed=1)
    went_on = arrays(cnnlab.load_dataset("digits", image_size=20, limit=201, seed=1))
    assert sum(passes) == 201 + 50 + 50  # training and test images, and the batch that was killed
    monkeypatch.setattr(resizing, "IN_MEMORY", 2**28)
    in_memory = arrays(cnnlab.load_dataset("digits", image_size=20, limit=201, seed=1))
    assert all((went_on[part] == in_memory[part]).all() for part in in_memory)


def test_an_audit_of_a_named_set_on_the_disk_finds_the_same_pairs(workplace, monkeypatch):
    in_memory = cnnlab.load_dataset("digits", image_size=20, limit=400, for_audit=True)
    monkeypatch.setattr(resizing, "IN_MEMORY", 1000)
    on_disk = cnnlab.load_dataset("digits", image_size=20, limit=400, for_audit=True)
    assert on_disk.summary.tables == in_memory.summary.tables
    assert list(on_disk.pictures.files) == list(in_memory.pictures.files)
    for column in ("pixels", "look", "size"):
        assert (on_disk.pictures.stored.known[column] == in_memory.pictures.stored.known[column]).all()


def test_a_network_is_trained_on_it_as_on_arrays(workplace, monkeypatch):
    recipe = cnnlab.Recipe(dataset="digits", image_size=20, limit=100, filters=(4,), dense_units=8, epochs=1)
    losses = []
    for bytes_in_memory in (2**28, 1000):
        monkeypatch.setattr(resizing, "IN_MEMORY", bytes_in_memory)
        dataset = cnnlab.load_dataset("digits", image_size=20, limit=100)
        losses.append(cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, dataset), dataset, recipe).test_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
