"""Test comparisons of models: pytest tests/test_compare.py"""

import csv
import dataclasses
import io
import json
import traceback
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab import resolve, train
from cnnlab.data import dataset as data
from cnnlab.evaluation import comparison_report
from cnnlab.training import fitting
from tests.helpers.pictures import picture


def test_few_functions_lead_from_a_comparison_to_the_fit_of_keras(store, small_cnn, monkeypatch):
    """With the command, these are six."""
    package, functions = Path(cnnlab.__file__).parent, []

    def on_train_begin(*_):
        stack = traceback.extract_stack()
        functions.extend(frame.name for frame in stack if Path(frame.filename).is_relative_to(package))
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.callbacks.CallbackList, "on_train_begin", on_train_begin)
    with pytest.raises(KeyboardInterrupt):
        cnnlab.compare_models([small_cnn])
    assert functions == ["compare_models", "train_model", "fit_and_evaluate", "train", "fit"]


def test_models_are_children_of_a_run_with_the_comparison(store, small_cnn):
    other = dataclasses.replace(small_cnn, filters=(4,), seed=1)
    comparison = cnnlab.compare_models([small_cnn, other])
    parent_run_id, results = comparison.run_id, comparison.results
    parent = store.get_run(parent_run_id)
    assert parent.info.status == "FINISHED"
    children = [store.get_run(r.run_id) for r in results]
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent_run_id}
    assert {c.info.experiment_id for c in children} == {parent.info.experiment_id}
    names = {file.path for file in store.list_artifacts(parent_run_id)}
    assert names == {
        *(
            "comparison_curves.png",
            "comparison_confusion.png",
            "calibration.png",
            "disagreements.png",
            "accuracy_by_seconds.png",
        ),
        *("comparison.csv", "verdicts.md"),
    }
    text = mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/comparison.csv")
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["run_id"] for row in table] == [r.run_id for r in results]
    assert [float(row["test_accuracy"]) for row in table] == [round(r.test_accuracy, 4) for r in results]
    assert [row["label"] for row in table] == [f"cnn {r.run_id[:6]}" for r in results]


def test_failed_child_fails_the_parent_and_says_why(store, small_cnn, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("cnnlab.tracking.run_logging.log_model", broken)
    with pytest.raises(cnnlab.LabError, match=r"disk full.*The trained model and all results are in") as caught:
        cnnlab.compare_models([small_cnn])
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    assert all("disk full" in run.data.tags["cnnlab.reason"] for run in runs)
    [folder] = Path("mlruns/undelivered").iterdir()
    assert str(folder.resolve()) in str(caught.value)
    model = keras.models.load_model(folder / "model.keras")
    assert model.output_shape == (None, 10)
    assert json.loads((folder / "metrics.json").read_text())["final_val_accuracy"] >= 0


def test_a_comparison_goes_on_without_a_model_that_fails_and_is_resumed(store, small_cnn, monkeypatch, capsys):
    """The middle one of three fails in a library; the next time it is the only one that is trained."""
    recipes = [dataclasses.replace(small_cnn, epochs=1, seed=seed) for seed in range(3)]
    trained, original = [], fitting.fit

    def fail_once(part, dataset, recipe, *args, **kwargs):
        trained.append(recipe.seed)
        if trained == [0, 1]:
            raise RuntimeError("no memory")
        return original(part, dataset, recipe, *args, **kwargs)

    monkeypatch.setattr(fitting, "fit", fail_once)
    first = cnnlab.compare_models(recipes)
    assert [result.recipe.seed for result in first.results] == [0, 2]
    assert first.failed == [("cnn seed 1", "RuntimeError: no memory")]
    assert "cnn seed 1 failed, and the comparison goes on without it" in capsys.readouterr().err
    parent = store.get_run(first.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["cnnlab.failed"] == "cnn seed 1: RuntimeError: no memory"
    assert "| cnn seed 1 | failed: RuntimeError: no memory |" in parent.data.tags["mlflow.note.content"]
    text = mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/comparison.csv")
    assert [row["failed"] for row in csv.DictReader(io.StringIO(text))] == ["", "", "RuntimeError: no memory"]

    second = cnnlab.compare_models(recipes)
    assert trained == [0, 1, 2, 1]
    assert (second.run_id, second.failed) == (first.run_id, [])
    assert [result.recipe.seed for result in second.results] == [0, 1, 2]
    runs = {run.info.run_id: run.info.status for run in store.search_runs([parent.info.experiment_id])}
    assert runs == dict.fromkeys([first.run_id, *(result.run_id for result in second.results)], "FINISHED")
    tags = store.get_run(first.run_id).data.tags
    assert "cnnlab.failed" not in tags
    assert "failed" not in tags["mlflow.note.content"]


def test_a_default_data_set_that_is_unavailable_falls_back_with_a_warning_and_a_tag(store, capsys):
    """The network is closed: digits stand in for CIFAR-10, random weights for ImageNet's."""
    recipe = cnnlab.Recipe(model="vgg16", epochs=1, limit=60)
    result = train.train_model(recipe)
    errors = capsys.readouterr().err
    assert "cifar10 cannot be downloaded; using the embedded digits" in errors
    assert "ImageNet weights cannot be downloaded; using random ones" in errors
    tags = store.get_run(result.run_id).data.tags
    assert tags["cnnlab.dataset_stands_in_for"] == "cifar10"
    assert tags["cnnlab.weights_stand_in_for"] == "imagenet"
    assert (result.recipe.dataset, result.recipe.weights) == ("digits", "random")


@pytest.mark.parametrize("fields", [{"dataset": "cifar10"}, {"dataset": "digits", "weights": "imagenet"}])
def test_a_named_data_set_that_is_unavailable_is_an_error(store, fields):
    recipe = cnnlab.Recipe(model="vgg16", epochs=1, limit=60, **fields)
    with pytest.raises(cnnlab.LabError, match="Expected to download"):
        train.train_model(recipe)
    assert len(store.search_experiments()) == 1  # MLflow's own default; nothing of ours was made


def test_data_are_loaded_once(store, small_cnn, monkeypatch):
    calls, original = [], data.load_dataset
    monkeypatch.setattr(resolve, "load_dataset", lambda *a, **k: calls.append(a) or original(*a, **k))
    cnnlab.compare_models([small_cnn, dataclasses.replace(small_cnn, epochs=1)])
    assert len(calls) == 1


@pytest.fixture
def mixed_folder(workplace):
    """Pictures of different sizes, all larger than the models see them."""
    for kind, name in enumerate(("robin", "wren")):
        (workplace / "birds" / name).mkdir(parents=True)
        for i in range(20):
            picture(kind, i, (40 + i, 60 - i)).save(workplace / "birds" / name / f"{i:02}.png")


@pytest.fixture
def grids(monkeypatch):
    """The shapes of the images of each figure with a grid of them."""
    shapes, original = [], comparison_report.plots.image_grid

    def image_grid(images, *rest, **more):
        shapes.append(images.shape[1:])
        return original(images, *rest, **more)

    monkeypatch.setattr(comparison_report.plots, "image_grid", image_grid)
    return shapes


def forget_identities(store, run_id):
    """Make a run one of an earlier version, which stored the digest of the pixels only."""
    model = store.get_run(run_id).outputs.model_outputs[0].model_id
    for file in [*Path("mlruns").rglob(f"{run_id}/**/predictions.npz"), *Path("mlruns").rglob(f"{model}/**/*.npz")]:
        arrays = dict(np.load(file))
        np.savez(file, **{name: value for name, value in arrays.items() if not name.endswith("identity")})


def test_models_see_the_same_pictures_at_sizes_of_their_own(store, mixed_folder, grids, monkeypatch):
    """A model's result does not depend on its partner, and runs are compared and promoted against each other."""
    both = {"dataset": "birds", "epochs": 1, "deterministic": True, "precision": "float32"}
    small = cnnlab.Recipe(image_size=16, filters=(4,), dense_units=4, **both)
    large = cnnlab.Recipe(model="resnet9", image_size=32, filters=(4, 8), batch_size=16, **both)
    sizes, original = [], data.load_dataset
    monkeypatch.setattr(resolve, "load_dataset", lambda *a, **k: sizes.append(k["image_size"]) or original(*a, **k))
    together = cnnlab.compare_models([small, large]).results
    assert sizes == [16, 32]
    assert grids[-1] == (32, 32, 3)
    alone = train.train_model(small)  # the other's pictures are no smaller without it
    assert together[0].recipe == alone.recipe
    assert together[0].history == alone.history
    assert np.array_equal(together[0].test.probabilities, alone.test.probabilities)
    results = [alone, together[1]]
    runs = [store.get_run(result.run_id) for result in results]
    assert len({run.data.tags["cnnlab.dataset_digest"] for run in runs}) == 2
    assert len({run.data.tags["cnnlab.dataset_identity"] for run in runs}) == 1
    assert len({run.info.experiment_id for run in runs}) == 1

    ids, (champion, challenger) = [r.run_id for r in results], [cnnlab.register_run(r.run_id)[0] for r in results]
    expected = cnnlab.compare_runs(ids).verdicts
    assert grids[-1] == (32, 32, 3)
    cnnlab.promote(champion)
    reason = cnnlab.promote(challenger).reason
    assert "On the same 3 validation images, by accuracy: " in reason
    forget_identities(store, champion.run_id)
    assert cnnlab.compare_runs(ids).verdicts == expected
    assert cnnlab.promote(challenger).reason == reason
    picture(0, 99).save("birds/robin/00.png")
    for function, argument in ((cnnlab.compare_runs, ids), (cnnlab.promote, challenger)):
        with pytest.raises(cnnlab.LabError, match=rf"which images run {champion.run_id[:8]} .* Received: other pixels"):
            function(argument)
