"""Test training and recording one model: pytest tests/test_train.py"""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from mlflow.utils import autologging_utils
from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

import cnnlab
from cnnlab.recipe import ResolvedRecipe
from cnnlab.tracking import mlflow_store
from cnnlab.training import trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory, store_template):
    """One small run: `(client, result, run, dataset)`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mlruns").mkdir()
    shutil.copy(store_template, folder / "mlruns" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dataset = cnnlab.load_dataset("digits", limit=300)
        recipe = cnnlab.Recipe(
            filters=(8, 8), dense_units=16, epochs=3, limit=300, learning_rate=0.01, dataset="digits"
        )
        before = mlflow.get_tracking_uri()
        result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, dataset), dataset, recipe)
        assert mlflow.get_tracking_uri() == before
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
        yield client, result, client.get_run(result.run_id), dataset


@pytest.fixture
def here(trained):
    mlflow.set_tracking_uri(trained[0].tracking_uri)


def test_metrics_are_one_per_epoch_from_step_0(trained):
    client, result, run, _ = trained
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        logged = client.get_metric_history(run.info.run_id, name)
        assert [m.step for m in logged] == [0, 1, 2]
        assert [m.value for m in logged] == pytest.approx(result.history[name])
    assert not [name for name in run.data.metrics if name.startswith("validation_")]
    assert run.data.metrics["test_accuracy"] == result.test_accuracy
    assert run.data.metrics["test_loss"] == pytest.approx(result.test_loss)
    assert run.data.metrics["train_seconds"] < run.data.metrics["total_seconds"]


def test_a_training_learns(trained):
    """Ten balanced classes: chance is 0.10 with a standard deviation of 0.035 on these 75 images."""
    _, result, _, _ = trained
    assert result.test_accuracy > 0.3
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_params_and_tags_are_recorded(trained):
    _, result, run, dataset = trained
    assert run.info.status == "FINISHED"
    expected = {"model": "cnn", "learning_rate": "0.01", "filters": "8,8", "batch_size": "32", "epochs": "3"}
    assert expected.items() <= run.data.params.items()
    assert run.data.params["optimizer_name"] == "adam"  # autologging's own
    assert run.data.tags["cnnlab.dataset_digest"] == dataset.digest
    assert run.data.tags["cnnlab.validation"] == "held out from the training set"
    assert run.inputs.dataset_inputs[0].dataset.digest == dataset.digest[:36]
    assert "reason" not in run.data.tags
    assert run.data.metrics["params"] == result.params == 3 * 3 * 3 * 8 + 8 + 3 * 3 * 8 * 8 + 8 + 288 * 16 + 16 + 170


def test_artifacts_are_recorded(trained, here):
    client, result, run, dataset = trained
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    figures = {"curves.png", "confusion_matrix.png", "class_scores.png", "mistakes.png", "gradcam.png"}
    assert names == figures | {
        "recipe.json",
        "model_summary.txt",
        "class_scores.csv",
        "predictions.npz",
        "data.txt",
    } | {"training_state.npz"}
    recipe = ResolvedRecipe.from_json(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/recipe.json"))
    assert recipe == result.recipe
    lines = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/class_scores.csv").splitlines()
    assert lines[0] == "class,test_images,precision,recall,f1"
    rows = [line.split(",") for line in lines[1:]]
    accuracy = sum(int(count) * float(recall) for _, count, _, recall, _ in rows) / len(dataset.test.labels)
    assert accuracy == pytest.approx(result.test_accuracy, abs=1e-4)
    path = mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/predictions.npz")
    with np.load(path) as stored:
        assert (stored["test_labels"] == dataset.test.labels).all()
        assert stored["test_probabilities"] == pytest.approx(result.test.probabilities)


def test_reloaded_model_reproduces_the_test_accuracy(trained, here, capfd):
    _, result, _, dataset = trained
    model = mlflow.pyfunc.load_model(result.model_uri)
    probabilities = model.predict(dataset.test.images)
    assert capfd.readouterr().out == ""  # no progress bar
    assert np.mean(probabilities.argmax(axis=1) == dataset.test.labels) == result.test_accuracy
    assert probabilities == pytest.approx(result.test.probabilities, abs=1e-6)
    assert model.metadata.metadata["class_names"] == list(dataset.class_names)
    lines = Path(mlflow.pyfunc.get_model_dependencies(result.model_uri)).read_text().splitlines()
    requirements = {line.split("==")[0] for line in lines}
    assert requirements == {"mlflow", "tensorflow", "keras", "numpy"}
    with pytest.raises(mlflow.MlflowException, match="Received an empty batch"):
        model.predict(dataset.test.images[:0])


def test_frozen_model_is_logged_whole(store, digits):
    recipe = cnnlab.Recipe(model="vgg16", weights="random", epochs=1, dataset="digits", limit=150)
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, digits), digits, recipe)
    reloaded = mlflow.pyfunc.load_model(result.model_uri).predict(digits.test.images)
    assert reloaded == pytest.approx(result.test.probabilities, abs=1e-4)
    assert result.params == 14_714_688 + 512 * 256 + 256 + 256 * 10 + 10
    assert result.trainable_params == 512 * 256 + 256 + 256 * 10 + 10


def test_validation_on_the_test_set_says_so(store, small_cnn):
    recipe = dataclasses.replace(small_cnn, val_fraction=0.0, epochs=1)
    dataset = cnnlab.load_dataset("digits", limit=150, val_fraction=0)
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, dataset), dataset, recipe)
    assert store.get_run(result.run_id).data.tags["cnnlab.validation"] == "test set"
    assert result.history["val_accuracy"][-1] == pytest.approx(result.test_accuracy, abs=1e-6)


def test_patience_stops_and_keeps_the_best_weights(store, small_cnn, digits, capsys):
    recipe = dataclasses.replace(small_cnn, epochs=30, patience=2, learning_rate=0.02)
    model = cnnlab.build_model(recipe, digits)
    result = cnnlab.fit_and_evaluate(model, digits, recipe)
    val_loss = result.history["val_loss"]
    assert len(val_loss) < 30
    assert len(val_loss) - 1 - int(np.argmin(val_loss)) == 2
    kept = model.evaluate(digits.val.images, digits.val.labels, verbose=0)[0]
    assert kept == pytest.approx(min(val_loss), rel=1e-4)
    assert store.get_run(result.run_id).data.metrics["kept_epoch"] == result.kept_epoch == len(val_loss) - 2
    assert f"with the weights of epoch {result.kept_epoch} of {len(val_loss)}" in capsys.readouterr().out


class StopAt(keras.callbacks.Callback):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_epoch_end(self, epoch, logs=None):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("broken disk"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_the_error_that_ends_a_run_gives_its_status_and_reason(store, small_cnn, digits, error, status):
    with pytest.raises(type(error)):
        cnnlab.fit_and_evaluate(cnnlab.build_model(small_cnn, digits), digits, small_cnn, callbacks=[StopAt(error)])
    [run] = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.status == status
    assert type(error).__name__ in run.data.tags["cnnlab.reason"]
    assert mlflow.active_run() is None


def test_diverged_run_fails_with_advice(store, small_cnn, digits):
    class Diverge(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])

    with pytest.raises(cnnlab.LabError, match=r"Received: NaN or infinity after epoch 2\. Lower the learning rate"):
        cnnlab.fit_and_evaluate(cnnlab.build_model(small_cnn, digits), digits, small_cnn, callbacks=[Diverge()])
    [run] = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.status == "FAILED"


def test_same_seed_same_figures_other_seed_others(store, small_cnn, digits):
    def losses(seed):
        recipe = dataclasses.replace(small_cnn, seed=seed)
        return trainer.train(cnnlab.build_model(recipe, digits), digits, recipe).history["loss"]

    assert losses(1) == pytest.approx(losses(1), rel=1e-5)
    assert losses(1) != pytest.approx(losses(2), rel=1e-3)


def test_a_callback_sees_the_logs_that_keras_gives(store, small_cnn, digits):
    seen = {}
    names = ("on_epoch_end", "on_test_end", "on_train_end", "on_train_batch_end")
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.setdefault("on_epoch_end", []).append(logs),
        on_train_batch_end=lambda batch, logs: seen.setdefault("on_train_batch_end", []).append(logs),
        on_test_end=lambda logs: seen.setdefault("on_test_end", []).append(logs),
        on_train_end=lambda logs: seen.setdefault("on_train_end", []).append(logs),
    )
    result = cnnlab.fit_and_evaluate(
        cnnlab.build_model(small_cnn, digits), digits, small_cnn, callbacks=[callback], splits=("val",)
    )
    assert set(seen) == set(names)
    assert [logs["val_loss"] for logs in seen["on_epoch_end"]] == result.history["val_loss"]
    assert [logs["loss"] for logs in seen["on_test_end"]] == result.history["val_loss"]
    assert all({"loss", "accuracy"} <= logs.keys() for logs in seen["on_train_batch_end"])
    assert not [name for name in store.get_run(result.run_id).data.metrics if name.startswith("validation_")]


def test_second_run_in_a_process_has_its_own_params_and_steps(store, small_cnn, digits):
    """Autologging keeps one set of params a run, and a callbacks list that was used before logs to the old run."""
    callbacks = [keras.callbacks.TerminateOnNaN()]
    results = [
        cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, digits), digits, recipe, callbacks=callbacks)
        for recipe in (small_cnn, dataclasses.replace(small_cnn, epochs=3))
    ]
    assert [len(store.get_metric_history(r.run_id, "loss")) for r in results] == [2, 3]
    assert len(callbacks) == 1


def test_recipe_json_is_plain(small_cnn):
    assert json.loads(small_cnn.to_json())["filters"] == [8, 8]


def test_a_run_of_several_fits_has_every_epoch_and_what_autologging_says_of_the_optimizer(store, digits):
    fields = {"filters": (8,), "epochs": 3, "batch_size": 64, "progressive_resizing": 0.4, "precision": "float32"}
    recipe = cnnlab.Recipe(model="resnet9", dataset="digits", limit=150, **fields)
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, digits), digits, recipe)
    for name, values in result.history.items():
        logged = store.get_metric_history(result.run_id, name)
        assert {metric.step: metric.value for metric in logged} == pytest.approx(dict(enumerate(values))), name
    params = store.get_run(result.run_id).data.params
    assert params["epochs"] == "3"
    assert params["optimizer_name"]


AUTOLOGGING = {
    "all libraries": (mlflow.autolog, {"log_input_examples": True}),
    "all, without models": (mlflow.autolog, {"log_models": False, "exclusive": True}),
    "all, off": (mlflow.autolog, {"disable": True}),
    "keras": (
        mlflow.keras.autolog,
        {"registered_model_name": "theirs", "log_every_epoch": False, "log_every_n_steps": 1},
    ),
    "tensorflow": (mlflow.tensorflow.autolog, {"log_models": False}),
}


@pytest.fixture
def autologging():
    """A function that turns on what `AUTOLOGGING` names; it is off again after the test."""
    before = {name: dict(settings) for name, settings in AUTOLOGGING_INTEGRATIONS.items()}

    def turn_on(name):
        function, options = AUTOLOGGING[name]
        function(**options, silent=True)
        settings = {name: dict(settings) for name, settings in AUTOLOGGING_INTEGRATIONS.items()}
        return settings, keras.Model.fit

    yield turn_on
    mlflow.autolog(disable=True, silent=True)
    AUTOLOGGING_INTEGRATIONS.clear()
    AUTOLOGGING_INTEGRATIONS.update(before)


@pytest.mark.parametrize("name", AUTOLOGGING)
def test_autologging_of_the_users_is_left_as_it_is_and_logs_nothing_of_ours(name, store, autologging):
    settings = autologging(name)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with mlflow_store.opened(), mlflow_store.opened():
        model.fit(np.zeros((2, 1)), np.zeros(2), verbose=0)
    assert not store.search_runs(["0"])
    assert ({name: dict(settings) for name, settings in AUTOLOGGING_INTEGRATIONS.items()}, keras.Model.fit) == settings
    assert not autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED


def test_a_training_with_autologging_on_is_recorded_as_without(store, digits, small_cnn, autologging):
    settings = autologging("all libraries")
    recipe = dataclasses.replace(small_cnn, epochs=1)
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, digits), digits, recipe)
    assert ({name: dict(settings) for name, settings in AUTOLOGGING_INTEGRATIONS.items()}, keras.Model.fit) == settings
    [run] = store.search_runs([store.get_run(result.run_id).info.experiment_id])
    assert run.info.status == "FINISHED"
    assert not {name for name in run.data.metrics if name.startswith(("validation_", "training_"))}
    assert len(store.search_logged_models([run.info.experiment_id])) == 1
    assert run.data.params["optimizer_learning_rate"] == "0.0010000000474974513"
