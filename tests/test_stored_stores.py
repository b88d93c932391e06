"""Test that a store of an earlier version still works: pytest tests/test_stored_stores.py

`fixtures/make_stored_runs_v2.py` made it once, on commit 2dac9c2. Do not make it anew: later versions must read it too.
"""

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab import classify, reproduction
from cnnlab.compare import compare_runs
from cnnlab.models.model_table import Range
from cnnlab.recipe import NEWER
from cnnlab.resolve import load_for
from cnnlab.tracking import model_registry, promotion, run_queries
from cnnlab.tracking.mlflow_store import open_store
from cnnlab.train import resume_run, train_model
from cnnlab.tuning.search import run_search
from cnnlab.tuning.search_settings import Search

STORE = Path(__file__).parent / "fixtures" / "stored_runs_v2.tar.xz"
# The trainings in the order in which they were made; the first two are a comparison's.
NAMES = ("plain cnn", "resnet9, members", "cnn, every option", "cnn, bfloat16", "cnn, plateau and patience")
NAMES += ("vgg16, staged", "saved backbone, staged", "resnet9, small first", "function", "pictures")
NAMES += ("winner of the search", "better cnn", "interrupted")
OTHER_TEST_IMAGES = ("cnn, every option", "pictures")
# What fields were called in the recipes of this store, and are called now.
RENAMED = {"fit": "resize_mode", "picture_size": "stored_size", "small_first": "progressive_resizing"}
RENAMED |= {"offset_rate": "bias_lr_scale", "test_views": "tta_views", "members": "ensemble_size"}
PLAIN = cnnlab.Recipe(filters=(4, 4), dense_units=8, dataset="digits", limit=150, epochs=2, deterministic=True)


@pytest.fixture
def stored(workplace, monkeypatch):
    """A copy of the store in the working folder, with the code in it trusted, and its checkpoint as if from today."""
    monkeypatch.setenv("CNNLAB_STORED_CODE", "run")
    with tarfile.open(STORE) as archive:
        archive.extractall(workplace, filter="data")
    for checkpoint in Path("mlruns", "checkpoints").glob("*.npz"):
        os.utime(checkpoint)
    open_store()
    return mlflow.MlflowClient()


def of_kind(client, kind):
    """The runs of a kind, oldest first."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`cnnlab.kind` = '{kind}'", order_by=["attributes.start_time ASC"])


def trainings(client):
    """The runs of single models by name."""
    return dict(zip(NAMES, of_kind(client, "train"), strict=True))


def test_stored_runs_and_versions_are_listed(stored):
    statuses = {name: run.info.status for name, run in trainings(stored).items()}
    assert statuses == {**dict.fromkeys(NAMES, "FINISHED"), "interrupted": "KILLED"}
    assert [len(of_kind(stored, kind)) for kind in ("trial", "final", "search", "compare")] == [3, 4, 1, 1]
    versions = model_registry.list_versions()
    assert [(v.name, v.number, v.aliases) for v in versions] == [
        ("cnnlab-digits", 2, ("champion",)),
        ("cnnlab-digits", 1, ("previous",)),
    ]
    assert run_queries.best_run("cnnlab-digits").info.run_id == trainings(stored)["better cnn"].info.run_id


def test_stored_recipes_load_by_the_old_names_of_their_fields(stored):
    fields = {f.name: f.default for f in dataclasses.fields(cnnlab.Recipe)}
    finished = [run for kind in ("train", "trial", "final") for run in of_kind(stored, kind)]
    differ_from_the_default = set()
    for run in finished:
        if run.info.status != "FINISHED":
            continue
        text = run_queries.read_text(run, "recipe.json")
        recipe = cnnlab.Recipe.from_json(text)
        assert cnnlab.Recipe.from_json(recipe.to_json()) == recipe
        for name, value in json.loads(text).items():
            now = RENAMED.get(name, name)
            value = tuple(value) if isinstance(value, list) else value
            if value is not None:  # a field that says nothing about the model may hold a default now
                assert getattr(recipe, now) == value, name
            if value not in (None, fields[now]):
                differ_from_the_default.add(now)
    assert differ_from_the_default == set(fields) - {*NEWER, "hold_out_every_class"}


def test_stored_runs_can_be_compared(stored):
    runs = {name: run for name, run in trainings(stored).items() if name not in (*OTHER_TEST_IMAGES, "interrupted")}
    comparison = compare_runs([run.info.run_id for run in runs.values()])
    assert [result.run_id for result in comparison.results] == [run.info.run_id for run in runs.values()]
    for result, run in zip(comparison.results, runs.values(), strict=True):
        assert result.test_accuracy == run.data.metrics["test_accuracy"]
        assert result.test_loss == pytest.approx(run.data.metrics["test_loss"])
        epochs = [metric.step for metric in stored.get_metric_history(run.info.run_id, "loss")]
        assert len(result.history["loss"]) == len(epochs) >= 1
        assert result.history["loss"][-1] == pytest.approx(run.data.metrics["loss"])
    assert stored.get_run(comparison.run_id).info.status == "FINISHED"


# The store leaves VGG16's large model out, the pictures are not there, and not every processor convolves in bfloat16.
WITHOUT_PREDICTIONS = ("vgg16, staged", "pictures", "interrupted", "cnn, bfloat16")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_PREDICTIONS])
def test_stored_models_predict_what_was_stored(name, stored):
    run = trainings(stored)[name]
    result = run_queries.read_result(run)
    classifier = classify.load_classifier(run.info.run_id)
    probabilities = classifier.probabilities(load_for(result.recipe).test.images)
    np.testing.assert_allclose(probabilities, result.test.probabilities, atol=1e-5)


def test_the_stored_champion_is_loaded_rolled_back_and_replaced(stored):
    champion = classify.load_classifier()
    assert (champion.uri, champion.image_size) == ("models:/cnnlab-digits/2", 32)
    assert champion.class_names == tuple("0123456789")
    before, after = promotion.rollback("cnnlab-digits")
    assert (before.number, after.number) == (2, 1)
    version, _ = model_registry.register_run(trainings(stored)["resnet9, members"].info.run_id)
    assert version.number == 3
    decision = promotion.promote(version, force=True)
    assert decision.promoted
    assert "On the same 15 validation images, by accuracy: version 3 and champion version 1" in decision.reason
    assert classify.load_classifier().uri == "models:/cnnlab-digits/3"


@pytest.mark.parametrize("name", ["resnet9, members", "cnn, every option", "saved backbone, staged"])
def test_stored_runs_are_repeated(name, stored):
    expect_repeated(trainings(stored)[name])


def test_a_stored_run_of_a_function_is_repeated_with_its_stored_code(stored):
    run = trainings(stored)["function"]
    assert run_queries.read_recipe(run).model == "/tmp/lab/my_models.py:build_net"  # which is not there
    expect_repeated(run)


def expect_repeated(run):
    backbone = "backbone.keras" if run_queries.read_recipe(run).backbone else None
    again = reproduction.reproduce(run.info.run_id, backbone=backbone)
    figures = {figure.name: figure for figure in again.figures}
    for name in ("loss", "val_loss", "test_loss"):
        assert figures[name].now == pytest.approx(figures[name].then, rel=0.01)
    assert figures["learning_rate"].difference == 0
    known = ("git_commit", "git_dirty", "python", "machine", "threads", "cnnlab", "keras", "tensorflow", "mlflow")
    assert [change for change in again.changes if change.partition(":")[0] not in (*known, "numpy")] == []


@pytest.mark.parametrize("by_id", [True, False])
def test_the_stored_interrupted_run_is_resumed(by_id, stored):
    run_id = trainings(stored)["interrupted"].info.run_id
    history = {name: stored.get_metric_history(run_id, name) for name in ("loss", "val_loss")}
    recipe = dataclasses.replace(PLAIN, epochs=4, dropout=0.2, seed=5)
    result = resume_run(run_id[:8]) if by_id else train_model(recipe)
    assert result.run_id == run_id
    assert stored.get_run(run_id).info.status == "FINISHED"
    assert not list(Path("mlruns", "checkpoints").glob("*.npz"))
    for name, metrics in history.items():
        assert [metric.step for metric in metrics] == [0, 1]
        assert result.history[name][:2] == [metric.value for metric in metrics]
        assert len(result.history[name]) == 4


def test_the_stored_search_resumes_without_training_anything_again(stored):
    kinds = ("trial", "final", "train", "search")
    before = [[run.info.run_id for run in of_kind(stored, kind)] for kind in kinds]
    space = {"learning_rate": Range(1e-3, 1e-2, log=True), "blocks": (1, 2), "filters": (4, 8)}
    base = dataclasses.replace(PLAIN, epochs=1, filters=(4,))
    result = run_search(Search(base, space, "random", trials=3, finalists=2, final_seeds=2))
    assert [[run.info.run_id for run in of_kind(stored, kind)] for kind in kinds] == before
    assert [result.parent_run_id] == before[-1]
    assert result.winner_run_id == trainings(stored)["winner of the search"].info.run_id
