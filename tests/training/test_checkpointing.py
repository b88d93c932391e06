"""Test writing and reading checkpoints: pytest tests/training/test_checkpointing.py"""

import dataclasses
import random

import keras
import numpy as np
import pytest

import cnnlab
from cnnlab.training import checkpointing, trainer
from cnnlab.utils import files

SMALL = {"dataset": "digits", "limit": 150, "batch_size": 16, "deterministic": True}
CNN = {"model": "cnn", "filters": (4, 8), "dense_units": 8, **SMALL}
EVERY_LAYER = "flip+shift+crop+rotate+zoom+color+randaugment+cutout"
# Each with the epochs that it is interrupted in.
RECIPES = {
    "patience, plateau, averages and layers that draw": (
        {**CNN, "epochs": 30, "learning_rate": 0.03, "dropout": 0.3, "augment": EVERY_LAYER, "ema": 0.9, "patience": 2}
        | {"schedule": "plateau"},
        (2,),
    ),
    "mixed and mirrored batches": (
        {**CNN, "epochs": 2, "augment": "altflip+mixup+cutmix", "schedule": "one-cycle", "optimizer": "sgd"},
        (1,),
    ),
    "lookahead, several optimizers and views": (
        {"model": "resnet9", "filters": (4,), "epochs": 2, "learning_rate": 0.1, "augment": "altflip", **SMALL},
        (1,),
    ),
    "small pictures first, two members": (
        {
            "model": "resnet9",
            "filters": (4,),
            "ensemble_size": 2,
            "epochs": 4,
            "learning_rate": 0.1,
            "augment": "altflip+crop",
            **SMALL,
        }
        | {"progressive_resizing": 0.5, "batch_size": 64},
        (1, 2, 3),
    ),
    "stages": (
        {"model": "transfer", "backbone": "mine.keras", "pooling": "flatten", "learning_rate": 0.01, "dense_units": 0}
        | {"epochs": 2, "fine_tune": 2, "augment": "flip", "dropout": 0.2, "patience": 1, **SMALL},
        (1, 2, 3),
    ),
}


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def drawn():
    """What is drawn from by whoever says nothing of a generator: Python's state and NumPy's."""
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def state(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


def train(recipe, digits, file=None, interrupted=None):
    """`(trained, model)`, gone on with from the file where there is one."""
    model = cnnlab.build_model(recipe, digits)
    found = checkpointing.read(file) if file and file.exists() else None
    kept = checkpointing.Checkpoint(file, {}, 0, found) if file else None
    callbacks = [] if interrupted is None else [Interrupt(interrupted)]
    return trainer.train(model, digits, recipe, quiet=True, callbacks=callbacks, checkpoint=kept), model


def expect_equal(again, model_again, whole, model):
    assert again.history == whole.history
    for one, other in zip(state(model_again), state(model), strict=True):
        np.testing.assert_array_equal(one, other)
    for part, predictions in whole.predictions.items():
        np.testing.assert_array_equal(again.predictions[part].probabilities, predictions.probabilities)
    stages = [[dataclasses.replace(stage, seconds=0) for stage in trained.stages] for trained in (again, whole)]
    assert stages[0] == stages[1]


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_training_ends_as_one_that_was_not(name, digits, backbone, tmp_path):
    fields, epochs = RECIPES[name]
    recipe = cnnlab.Recipe(**fields)
    whole, model = train(recipe, digits)
    at_the_end = drawn()
    keras.utils.set_random_seed(recipe.seed)
    assert at_the_end == drawn()  # so that nothing of it is to be kept
    file = tmp_path / "kept.npz"
    for epoch in epochs:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, digits, file, epoch)
        assert checkpointing.read(file).epochs == epoch
    before = checkpointing.read(file).progress["seconds"]
    again, model_again = train(recipe, digits, file)
    expect_equal(again, model_again, whole, model)
    assert again.seconds > before > 0
    if recipe.schedule == "plateau":  # what was written behind the last epoch leads to the end without another one
        assert checkpointing.read(file).progress["stopped"]
        expect_equal(*train(recipe, digits, file), whole, model)


@pytest.fixture
def kept(tmp_path):
    """A checkpoint that is written without a training."""
    kept = checkpointing.Checkpoint(tmp_path / "kept.npz", {"training": "1"}, 0)
    kept.write({"history": {"loss": [1.0]}}, {"variables": [np.arange(3.0), np.ones((2, 2), np.uint8)]})
    return kept


def test_a_damaged_file_is_a_sentence(kept):
    whole = kept.file.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        kept.file.write_bytes(damaged[: len(whole) if generator.random() < 0.7 else generator.integers(len(whole))])
        try:
            found = checkpointing.read(kept.file)
        except cnnlab.LabError:
            refused += 1
        else:  # of bits that say nothing, such as times in the archive
            assert (found.arrays["variables"][0].tolist(), found.epochs) == ([0, 1, 2], 1)
    assert refused > 150
    for text in (b"", b"PK", b"\x80\x04."):
        kept.file.write_bytes(text)
        with pytest.raises(cnnlab.LabError, match="Received a damaged file"):
            checkpointing.read(kept.file)


def test_nothing_in_a_file_is_run(kept):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    np.savez(kept.file, facts=np.array([Evil()], dtype=object))
    with pytest.raises(cnnlab.LabError, match="damaged"):
        checkpointing.read(kept.file)


def test_a_checkpoint_of_another_model_is_a_sentence(kept):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    kept.found = checkpointing.read(kept.file)
    x = np.zeros((2, 2))
    with pytest.raises(cnnlab.LabError, match="Received: one with other variables"):
        model.fit(x, x, callbacks=[checkpointing.Keeper(kept, {}, [], [], (0, 0))], verbose=0)


def test_a_full_disk_is_said_once_and_leaves_the_checkpoint_before(kept, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for _ in range(2):
        kept.write({"history": {"loss": [1.0, 2.0]}}, {})
    assert capsys.readouterr().err.count("no checkpoint in") == 1
    assert checkpointing.read(kept.file).epochs == 1
    assert [file.name for file in kept.file.parent.glob("kept*")] == ["kept.npz"]


def test_a_short_training_is_not_kept(tmp_path):
    assert not checkpointing.Checkpoint(tmp_path / "kept.npz", {}, 60).is_due()
    assert checkpointing.Checkpoint(tmp_path / "kept.npz", {}, 0).is_due()
