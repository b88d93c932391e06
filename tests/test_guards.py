"""Test that seeded trainings and stored files of earlier versions still hold: pytest tests/test_guards.py

`fixtures/` says how both files were made. A change that means to change numbers records them anew and says so.

Losses recorded on one machine are compared on another, which rounds otherwise: they hold to five times the widest
difference that was seen between machines (`spread` in `seeded_runs.json`). That is 0.0007 % to 2.3 % of a loss. Another
seed and twice the learning rate change each of the seven trainings by more, another order of the batches five of them.
Accuracies are not compared: one picture of 15 on the other side of the edge between two classes is more than that.
"""

import json
import tarfile
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab import classify, reproduction
from cnnlab.compare import compare_runs
from cnnlab.tracking import model_registry, promotion, run_queries
from cnnlab.tracking.mlflow_store import open_store
from cnnlab.train import train_model

FIXTURES = Path(__file__).parent / "fixtures"
SEEDED = json.loads((FIXTURES / "seeded_runs.json").read_text())


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    keras.utils.set_random_seed(7)
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("weights") / "vgg16.weights.h5"
    base.save_weights(path)
    yield str(path)
    path.unlink()


@pytest.mark.parametrize("name", SEEDED)
def test_seeded_trainings_give_the_recorded_losses(name, store, weights_file):
    recorded = SEEDED[name]
    recipe = dict(recorded["recipe"])
    if recipe["weights"] == "vgg16.weights.h5":
        recipe["weights"] = weights_file
    result = train_model(cnnlab.Recipe.from_json(json.dumps(recipe)))
    assert result.history.keys() == {*recorded["history"], "accuracy", "val_accuracy"}
    assert len(result.history["val_accuracy"]) == len(recorded["history"]["val_loss"])
    tolerance = 5 * recorded["spread"]
    for metric, values in recorded["history"].items():
        rel = 1e-6 if metric == "learning_rate" else tolerance
        assert result.history[metric] == pytest.approx(values, rel=rel), metric
    assert result.test_loss == pytest.approx(recorded["test_loss"], rel=tolerance)
    assert result.validation.loss == pytest.approx(recorded["val_loss"], rel=tolerance)


@pytest.fixture
def stored(workplace):
    """A store of an earlier version: a comparison of two runs, a search, and a champion, `models:/cnnlab-digits/1`."""
    with tarfile.open(FIXTURES / "stored_runs.tar.xz") as archive:
        archive.extractall(workplace, filter="data")
    open_store()
    return mlflow.MlflowClient()


def of_kind(client, kind):
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, f"tags.`cnnlab.kind` = '{kind}'")


def test_an_earlier_store_is_listed_and_compared(stored):
    assert len(of_kind(stored, "train")) == 3
    assert len(of_kind(stored, "trial")) == 3
    [version] = model_registry.list_versions()
    assert (version.name, version.number, version.aliases) == ("cnnlab-digits", 1, ("champion",))
    comparison = compare_runs([run.info.run_id for run in of_kind(stored, "train")])
    tested = {run.info.run_id: run.data.metrics["test_accuracy"] for run in of_kind(stored, "train")}
    assert {r.run_id: r.test_accuracy for r in comparison.results} == tested
    assert stored.get_run(comparison.run_id).info.status == "FINISHED"


def test_an_earlier_run_is_registered_against_the_champion_and_predicts(stored, workplace):
    best = run_queries.best_run()
    version, _ = model_registry.register_run()
    assert version.run_id == best.info.run_id
    decision = promotion.promote(version, force=True)
    assert "15 validation images" in decision.reason or decision.unchanged
    assert model_registry.find_champion("cnnlab-digits").number == version.number
    dataset = cnnlab.load_dataset("digits", limit=150)
    (workplace / "shots").mkdir()
    for i, image in enumerate(dataset.test.images):
        Image.fromarray(image).save(workplace / "shots" / f"{i:02}.png")
    classifier = classify.load_classifier()
    rows = list(classify.classify_files(classifier, classify.list_pictures([workplace / "shots"])))
    test = run_queries.read_result(best).test
    assert np.array([row[1] for row in rows]) == pytest.approx(test.probabilities, abs=1e-5)


def test_earlier_runs_are_repeated_and_what_the_code_does_otherwise_is_said(stored):
    for run in (of_kind(stored, "train")[0], of_kind(stored, "trial")[0]):
        again = reproduction.reproduce(run.info.run_id)
        assert {"loss", "val_loss"} <= {figure.name for figure in again.figures}
        assert "batches: not recorded then, in a new order each epoch now" in again.changes
