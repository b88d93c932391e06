"""Test training in two stages: the head, then the fine-tuned layers: pytest tests/training/test_stages.py"""

import dataclasses
import math

import keras
import numpy as np
import pytest

import cnnlab
from cnnlab.data.batching import Batches
from cnnlab.models.model_surgery import layer_groups_from
from cnnlab.models.pretrained import load_backbone
from cnnlab.models.transfer import check_transfer
from cnnlab.train import train_model
from cnnlab.training import trainer
from cnnlab.training.stages import StageResult, begin_fine_tuning, kept_epoch, plan_stages
from cnnlab.utils import user_cache

STAGED = {"dataset": "digits", "limit": 150, "epochs": 2, "fine_tune": 1, "dense_units": 0, "batch_size": 16}


@pytest.fixture
def staged(backbone):
    """A recipe that fine-tunes `mine.keras`."""
    return cnnlab.Recipe(
        model="transfer", backbone="mine.keras", pooling="flatten", learning_rate=0.01, schedule="constant", **STAGED
    )


@pytest.mark.parametrize(
    ("patience", "kept", "epoch"), [(None, None, 5), (2, None, 2), (None, True, 5), (2, True, 4), (2, False, 2)]
)
def test_the_kept_epoch_is_the_best_of_the_last_stage_that_is_kept(patience, kept, epoch):
    history = {"loss": [1.0] * 5, "val_loss": [0.5, 0.1, 0.2, 0.3, math.nan]}
    stages = [] if kept is None else [StageResult("a", 3, 1.0, 0.5, 1.0), StageResult("b", 2, 1.0, 0.5, 1.0, kept)]
    assert kept_epoch(history, patience, stages) == epoch


def test_one_run_one_curve_and_the_figures_of_each_stage(store, staged):
    result = train_model(staged)
    run = store.get_run(result.run_id)
    for name in ("loss", "val_accuracy", "learning_rate"):
        logged = store.get_metric_history(result.run_id, name)
        assert [m.step for m in logged] == [0, 1, 2]
        assert [m.value for m in logged] == pytest.approx(result.history[name])
    assert result.history["learning_rate"] == pytest.approx([0.01, 0.01, 0.001])
    assert (run.data.metrics["stage1_epochs"], run.data.metrics["stage2_epochs"]) == (2, 1)
    assert result.stage_borders == (2,)
    assert result.name == "mine fine-tuned on digits"
    assert (run.data.params["fine_tune"], run.data.params["fine_tune_from"]) == ("1", "top")
    assert "fine-tuning from top" in run.data.tags["cnnlab.stages"]
    # The features that the head takes, and those that the upper stage takes, were computed once.
    assert [entry["shape"][1:] for entry in user_cache.entries()] in ([[64], [8, 8, 8]], [[8, 8, 8], [64]])
    assert result.trainable_params == (9 * 8 + 1) * 16 + 65 * 10


@pytest.mark.parametrize(
    ("start", "fine_tuned"), [("top", {"conv2"}), ("conv2", {"conv2"}), ("all", {"conv1", "conv2"})]
)
def test_weights_of_the_second_stage_move_and_those_below_do_not(staged, start, fine_tuned):
    """The test set validates here and chooses no stage, so the second one is kept, whatever it scores."""
    recipe = dataclasses.replace(staged, fine_tune_learning_rate=1e-3, fine_tune_from=start, val_fraction=0)
    dataset = cnnlab.load_dataset("digits", limit=150, val_fraction=0)
    model = cnnlab.build_model(recipe, dataset)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    trained = trainer.train(model, dataset, recipe, quiet=True)
    moved = {
        layer.name
        for layer in model.layers
        if any((a != b).any() for a, b in zip(before[layer.name], layer.get_weights(), strict=True))
    }
    assert trained.stages[1].kept
    assert moved == {*fine_tuned, "probabilities"}
    assert len(trained.history["loss"]) == 3


def test_the_weights_before_a_stage_that_makes_it_worse_are_restored(store, staged, capsys):
    spoilt = dataclasses.replace(staged, epochs=8, fine_tune_learning_rate=5.0)
    result = train_model(spoilt)
    metrics = store.get_run(result.run_id).data.metrics
    assert metrics["stage2_val_accuracy"] < metrics["stage1_val_accuracy"]
    assert metrics["final_val_accuracy"] == metrics["stage1_val_accuracy"]
    assert "made it worse, so the weights before it are kept" in capsys.readouterr().out
    assert "made it worse" in store.get_run(result.run_id).data.tags["cnnlab.stages"]


def test_a_training_fails_whose_second_stage_diverges(staged, digits):
    class Diverge(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == staged.epochs:
                self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])

    with pytest.raises(cnnlab.LabError, match=r"Expected a finite loss.*epoch 3\. Lower the learning rate"):
        trainer.train(cnnlab.build_model(staged, digits), digits, staged, callbacks=[Diverge()])


def test_the_test_set_chooses_no_stage(staged):
    dataset = cnnlab.load_dataset("digits", limit=150, val_fraction=0)
    recipe = dataclasses.replace(staged, val_fraction=0, epochs=8, fine_tune_learning_rate=5.0)
    trained = trainer.train(cnnlab.build_model(recipe, dataset), dataset, recipe, quiet=True)
    assert trained.stages[1].kept
    assert trained.predictions["test"].accuracy == trained.stages[1].val_accuracy


def test_where_fine_tuning_starts():
    network = load_backbone("vgg16", "random", 32)
    top = ["block5_conv1", "block5_conv2", "block5_conv3", "block5_pool"]
    assert layer_groups_from(network, "top", 32) == layer_groups_from(network, "1", 32) == [top]
    assert layer_groups_from(network, "block5_conv2", 32) == [top[1:]]
    assert [group[0] for group in layer_groups_from(network, "block3", 32)] == [
        "block5_conv1",
        "block4_conv1",
        "block3_conv1",
    ]
    everything = [name for group in layer_groups_from(network, "all", 32) for name in group]
    assert sorted(everything) == sorted(layer.name for layer in network.model.layers[1:])
    for start, message in (("6", "at most 5, the stages of vgg16"), ("blok", "Its stages start at: block5_conv1")):
        with pytest.raises(cnnlab.ArgumentError, match=message):
            layer_groups_from(network, start, 32)
    with pytest.raises(cnnlab.ArgumentError, match="fine_tune_from to be at most 5"):
        check_transfer(32, backbone="vgg16", fine_tune_from="6")


def test_normalisation_stays_as_it_was_and_lower_stages_learn_slower(digits, workplace):
    recipe = cnnlab.Recipe(
        **{"model": "mobilenetv2", "weights": "random", "image_size": 32, "layer_decay": 0.5},
        **{**STAGED, "fine_tune_from": "2", "learning_rate": 0.01},
    ).with_defaults()
    model = cnnlab.build_model(recipe, digits)
    begin_fine_tuning(model, plan_stages(recipe)[1], recipe, 100)
    unfrozen = {layer.name for layer in model.layers if layer.trainable_weights}
    assert {"block_16_project", "block_7_project", "probabilities"} - unfrozen == set()
    assert not [
        layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    model.optimizer.build(model.trainable_variables)
    rate = {
        variable.path.split("/")[0]: float(
            model.optimizer._optimizer_map(variable)._learning_rate.initial_learning_rate
        )
        for variable in model.trainable_variables
    }
    assert rate["probabilities"] == pytest.approx(0.001)
    assert (rate["block_16_project"], rate["block_7_project"]) == (pytest.approx(0.0005), pytest.approx(0.00025))


def test_small_pictures_first_is_one_training_of_all_its_epochs(digits, monkeypatch):
    fields = {"model": "resnet9", "filters": (8,), "epochs": 5, "batch_size": 32, "augment": "altflip+crop"}
    recipe = cnnlab.Recipe(**fields, progressive_resizing=0.6, dataset="digits", limit=150, precision="float32")
    sizes, made = [], Batches.__getitem__

    def seen(self, i):
        batch = made(self, i)
        sizes.append(batch[0].shape[1:])
        return batch

    monkeypatch.setattr(Batches, "__getitem__", seen)
    model = cnnlab.build_model(recipe, digits)
    trained = trainer.train(model, digits, recipe, quiet=True)
    side = digits.image_shape[0]
    small = round(side * 25 / 32)
    assert list(dict.fromkeys(sizes)) == [(small, small, 3), (side, side, 3)]
    assert [(stage.name, stage.epochs) for stage in trained.stages] == [("small pictures", 3), ("whole pictures", 2)]
    steps = math.ceil(len(digits.train) / 32)
    assert int(model.optimizer.iterations) == 5 * steps
    # The schedule is one over both: it ends where that of a training on whole pictures does.
    whole = dataclasses.replace(recipe, progressive_resizing=0.0)
    rates = trainer.train(cnnlab.build_model(whole, digits), digits, whole, quiet=True).history["learning_rate"]
    assert trained.history["learning_rate"] == pytest.approx(rates)
    assert len(trained.history["val_accuracy"]) == 5


def test_crops_are_squares_of_their_pictures_each_at_a_place_of_its_own():
    pixels = np.arange(64 * 12 * 12, dtype="uint16").reshape(64, 12, 12, 1)  # each says where it is
    batches = Batches(pixels, np.zeros(64), 64, seed=3, side=9)
    crops, first = batches[0][0], np.sort(batches.order[:64])
    assert (crops.shape, crops.dtype) == ((64, 9, 9, 1), pixels.dtype)
    top, left = np.divmod(crops[:, 0, 0, 0] - first * 144, 12)
    assert set(top) == set(left) == {0, 1, 2, 3}
    for crop, picture, y, x in zip(crops, pixels[first], top, left, strict=True):
        np.testing.assert_array_equal(crop, picture[y : y + 9, x : x + 9])
    np.testing.assert_array_equal(batches[0][0], crops)
    batches.on_epoch_end()
    assert (batches[0][0][:, 0, 0, 0] % 144 != crops[:, 0, 0, 0] % 144).any()
