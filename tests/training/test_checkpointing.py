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
# Recipes, each with the epochs (from 0) in which its training is interrupted.
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


def global_random_states():
    """Return the states of the generators that Python and NumPy share between all callers."""
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def variables_of(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


def train(recipe, digits, file=None, interrupted=None):
    """Train, resuming from the file where there is one; return the result and the model."""
    model = cnnlab.build_model(recipe, digits)
    stored = checkpointing.read(file) if file and file.exists() else None
    checkpoint = checkpointing.Checkpoint(file, {}, 0, stored) if file else None
    callbacks = [] if interrupted is None else [Interrupt(interrupted)]
    return trainer.train(model, digits, recipe, quiet=True, callbacks=callbacks, checkpoint=checkpoint), model


def expect_equal(again, model_again, whole, model):
    assert again.history == whole.history
    for one, other in zip(variables_of(model_again), variables_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    for split, predictions in whole.predictions.items():
        np.testing.assert_array_equal(again.predictions[split].probabilities, predictions.probabilities)
    stages = [[dataclasses.replace(stage, seconds=0) for stage in trained.stages] for trained in (again, whole)]
    assert stages[0] == stages[1]


LONGER = ("patience, plateau, averages and layers that draw", "small pictures first, two members", "stages")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONGER else []) for name in RECIPES]
)
def test_an_interrupted_training_ends_as_one_that_was_not(name, digits, backbone, tmp_path):
    fields, epochs = RECIPES[name]
    recipe = cnnlab.Recipe(**fields)
    whole, model = train(recipe, digits)
    at_the_end = global_random_states()
    keras.utils.set_random_seed(recipe.seed)
    assert at_the_end == global_random_states()  # no checkpoint need store them
    file = tmp_path / "checkpoint.npz"
    for epoch in epochs:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, digits, file, epoch)
        assert checkpointing.read(file).epochs == epoch
    before = checkpointing.read(file).progress["seconds"]
    again, model_again = train(recipe, digits, file)
    expect_equal(again, model_again, whole, model)
    assert again.seconds > before > 0
    if recipe.schedule == "plateau":  # the checkpoint of the last epoch leads to the end without another epoch
        assert checkpointing.read(file).progress["stopped"]
        expect_equal(*train(recipe, digits, file), whole, model)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint that is written without a training."""
    checkpoint = checkpointing.Checkpoint(tmp_path / "checkpoint.npz", {"training": "1"}, 0)
    checkpoint.write({"history": {"loss": [1.0]}}, {"variables": [np.arange(3.0), np.ones((2, 2), np.uint8)]})
    return checkpoint


def test_a_damaged_file_is_refused_in_one_sentence(checkpoint):
    whole = checkpoint.file.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        checkpoint.file.write_bytes(
            damaged[: len(whole) if generator.random() < 0.7 else generator.integers(len(whole))]
        )
        try:
            stored = checkpointing.read(checkpoint.file)
        except cnnlab.LabError:
            refused += 1
        else:  # bits without a meaning changed, such as times in the archive
            assert (stored.arrays["variables"][0].tolist(), stored.epochs) == ([0, 1, 2], 1)
    assert refused > 150
    for text in (b"", b"PK", b"\x80\x04."):
        checkpoint.file.write_bytes(text)
        with pytest.raises(cnnlab.LabError, match="Received a damaged file"):
            checkpointing.read(checkpoint.file)


def test_no_code_in_a_file_is_run(checkpoint):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    np.savez(checkpoint.file, facts=np.array([Evil()], dtype=object))
    with pytest.raises(cnnlab.LabError, match="damaged"):
        checkpointing.read(checkpoint.file)


def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(checkpoint):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    checkpoint.stored = checkpointing.read(checkpoint.file)
    x = np.zeros((2, 2))
    with pytest.raises(cnnlab.LabError, match="Received: one with other variables"):
        model.fit(x, x, callbacks=[checkpointing.CheckpointCallback(checkpoint, checkpointing.Progress())], verbose=0)


def test_a_full_disk_gives_one_warning_and_leaves_the_checkpoint_before(checkpoint, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for _ in range(2):
        checkpoint.write({"history": {"loss": [1.0, 2.0]}}, {})
    assert capsys.readouterr().err.count("no checkpoint in") == 1
    assert checkpointing.read(checkpoint.file).epochs == 1
    assert [file.name for file in checkpoint.file.parent.glob("checkpoint*")] == ["checkpoint.npz"]


def test_a_short_training_writes_no_checkpoint(tmp_path):
    assert not checkpointing.Checkpoint(tmp_path / "checkpoint.npz", {}, 60).is_due()
    assert checkpointing.Checkpoint(tmp_path / "checkpoint.npz", {}, 0).is_due()
