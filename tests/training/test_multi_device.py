"""Test that several devices give what one device gives: pytest -n 0 tests/training/test_multi_device.py

Other tests have started TensorFlow with one processor, so the trainings run in a process of their own.
"""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from cnnlab.cli.main import main
from cnnlab.data.batching import Batches
from cnnlab.errors import ArgumentError
from cnnlab.recipe import Recipe
from cnnlab.reproduction import reproduce
from cnnlab.resolve import build_model
from cnnlab.training import multi_device
from cnnlab.training.callbacks import Lookahead
from cnnlab.tuning.search import run_search
from cnnlab.tuning.search_settings import Search

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_on_devices.py"
# 135 pictures to train on, so that a last batch of 7 cannot be shared equally.
SMALL = {"dataset": "digits", "limit": 150, "filters": (8, 8), "dense_units": 16, "epochs": 2}
SGD = {**SMALL, "optimizer": "sgd", "learning_rate": 0.1}


def train_in_a_process(*asked):
    """Return the results of several trainings, in a process with as many devices as the most of them want."""
    given = json.dumps(asked)
    command = [sys.executable, SCRIPT, str(max(one["devices"] for one in asked))]
    process = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(process.stdout.splitlines()[-1])
    assert [one["devices"] for one in results] == [one["devices"] for one in asked]
    return results


# Of accuracies, three pictures of the 135 and of the 15: rounding, which differs between processors, moves some of them
# over the edge between two classes.
PICTURES = {"accuracy": 3.1 / 135, "val_accuracy": 3.1 / 15}


def expect_equal(one, other, tolerance=1e-5):
    for metric, values in one["history"].items():
        expected = pytest.approx(values, rel=tolerance, abs=PICTURES.get(metric))
        assert other["history"][metric] == expected, metric
    assert other["test_loss"] == pytest.approx(one["test_loss"], rel=tolerance)


def test_two_devices_give_the_losses_of_one():
    one, two = train_in_a_process({"devices": 1, "recipe": SGD}, {"devices": 2, "recipe": SGD})
    assert one["history"]["loss"][-1] < one["history"]["loss"][0] - 0.02
    expect_equal(one, two)


@pytest.mark.long
def test_four_devices_give_the_losses_of_one():
    [one], [four] = train_in_a_process({"devices": 1, "recipe": SGD}), train_in_a_process({"devices": 4, "recipe": SGD})
    expect_equal(one, four)


@pytest.mark.long
def test_only_rounding_differs_between_numbers_of_devices():
    one, two = train_in_a_process({"devices": 1, "float64": True}, {"devices": 2, "float64": True})
    [four] = train_in_a_process({"devices": 4, "float64": True})
    for several in (two, four):
        assert np.abs(np.subtract(several["weights"], one["weights"])).max() < 1e-9
        expect_equal(one, several, 2e-6)  # Keras keeps its figures in float32


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "tolerance"),
    [
        ({"ema": 0.9, "class_weights": "balanced"}, 1e-5),
        ({"clip_norm": 0.1, "augment": "mixup"}, 1e-5),
        ({"schedule": "plateau", "patience": 1, "epochs": 3}, 1e-5),
        (
            {"model": "resnet9", "precision": "float32", "augment": "none", "batch_size": 32, "learning_rate": 0.05},
            5e-3,  # 0.0016 of the test loss was seen
        ),
        (
            {"model": "transfer", "backbone": "mine.keras", "fine_tune": 1, "fine_tune_from": "all", "dropout": 0.0},
            1e-5,
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_whatever_a_training_does_two_devices_do_as_one(changed, tolerance, backbone):
    recipe = {**SGD, **changed}
    if changed.get("model") == "transfer":
        recipe |= {"dropout": 0.0}
        recipe.pop("filters")
    if changed.get("model") == "resnet9":
        recipe.pop("dense_units")
    one, two = train_in_a_process(*({"devices": n, "recipe": recipe} for n in (1, 2)))
    expect_equal(one, two, tolerance)


@pytest.mark.long
def test_random_layers_of_two_devices_draw_other_numbers():
    one, two = train_in_a_process(*({"devices": n, "recipe": {**SGD, "dropout": 0.5}} for n in (1, 2)))
    assert two["history"]["loss"] != pytest.approx(one["history"]["loss"], rel=1e-4)
    assert two["history"]["loss"] == pytest.approx(one["history"]["loss"], rel=0.1)


def test_a_batch_that_does_not_divide_is_given_to_each_device_as_a_whole():
    images, labels = np.arange(7, dtype="uint8").reshape(7, 1, 1, 1), np.arange(7) % 2
    batches = multi_device.ReplicaBatches(Batches(images, labels, 4, weights=np.array([0, 2], "float32")), 2)
    x, y, weights = batches[0]
    assert (x.ravel().tolist(), y.tolist(), weights.tolist()) == ([0, 1, 2, 3], [0, 1, 0, 1], [0, 2, 0, 2])
    x, y, weights = batches[1]
    assert (x.ravel().tolist(), y.tolist()) == ([4, 5, 6] * 2, [0, 1, 0] * 2)
    assert np.abs(weights).tolist() == [0, 2, 0] * 2
    assert np.signbit(weights).tolist() == [False] * 3 + [True] * 3  # a class that weighs nothing has copies too


def test_lookahead_goes_by_five_steps_however_often_keras_gives_control():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    x, y = np.ones((12, 1), "float32"), np.zeros((12, 1), "float32")
    left = []
    for steps in (1, 5):
        model.set_weights([np.ones((1, 1))])
        model.compile(keras.optimizers.SGD(0.05), loss="mse", steps_per_execution=steps)
        model.fit(x, y, batch_size=1, epochs=2, shuffle=False, callbacks=[Lookahead(0.8, 24)], verbose=0)
        left.append(model.get_weights()[0].item())
    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("2", "at most the number of this machine's GPUs. Received: 2, and TensorFlow sees none"),
        ("0", "auto or a number from 1 upwards. Received: '0'"),
        ("all", "auto or a number from 1 upwards. Received: 'all'"),
    ],
)
def test_devices_that_are_not_there_are_an_error_before_anything_is_written(
    devices, message, store, monkeypatch, capsys
):
    for command in (["train", "cnn"], ["compare", "cnn", "resnet9"], ["tune", "cnn"]):
        monkeypatch.setattr(sys, "argv", ["cnnlab", *command, "--dataset", "digits", "--devices", devices])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not store.search_runs([e.experiment_id for e in store.search_experiments()])


def test_auto_is_one_device_where_there_are_not_several_gpus(monkeypatch, digits):
    monkeypatch.setenv("CNNLAB_DEVICES", "auto")
    assert multi_device.device_count(build_model(Recipe(**SMALL), digits)) == 1


def test_several_trainings_at_a_time_have_one_device_each(store, monkeypatch):
    monkeypatch.setenv("CNNLAB_DEVICES", "auto")
    search = Search(Recipe(**SMALL), ("dense_units",), "random", "val_loss", 1, 1, 2)
    with pytest.raises(ArgumentError, match="Expected one device for each of several trainings"):
        run_search(search, workers=2)


@pytest.mark.long
def test_a_run_on_two_devices_is_repeated_on_one(store, workplace):
    start = (
        "import tensorflow as tf; [cpu] = tf.config.list_physical_devices('CPU');"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2);"
        "import sys; from cnnlab.cli.main import main; main()"
    )
    options = ["--dataset", "digits", "--limit", "150", "--filters", "8,8", "--dense-units", "16", "--optimizer", "sgd"]
    subprocess.run(
        [sys.executable, "-c", start, "train", "cnn", *options, "--epochs", "2", "--devices", "2"],
        check=True,
    )
    [experiment] = [e.experiment_id for e in store.search_experiments() if e.name != "Default"]
    [run] = store.search_runs([experiment])
    assert run.data.tags["cnnlab.devices"] == "2"
    again = reproduce(run.info.run_id)
    assert "devices: 2 then, 1 now" in again.changes
    assert {"loss", "val_loss"} <= {figure.name for figure in again.figures}
    assert max(figure.difference for figure in again.figures) < 1e-5
