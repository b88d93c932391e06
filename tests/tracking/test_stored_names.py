"""Test names that people give in what the store records: pytest tests/tracking/test_stored_names.py"""

import dataclasses
import os

import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab import classify
from cnnlab.tracking import model_registry, promotion, run_logging, run_queries
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.tag_names import matches

recorder = Recorder()

CLASSES = ("=1+1", "@a", r"$x$ \y_z", '<b>"a", *c*', "-1", "yes", "1e5", "猫|", "e\u0301", "w" * 240)
NAME = """=$x$ [bold]it's "a|b" #1?<b>%20@1:2 {x} \\n 猫"""
FOLDER = os.fsdecode(b"/data/\x1b[31m\ncaf\xe9")


@pytest.fixture
def oddly_named(digits):
    return dataclasses.replace(digits, name=NAME, source="folder/0123", class_names=CLASSES)


def test_a_run_of_oddly_named_data_is_kept_found_and_used(store, oddly_named, small_cnn):
    recipe = dataclasses.replace(small_cnn, dataset=FOLDER)
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(small_cnn, oddly_named), oddly_named, recipe)
    run = store.get_run(result.run_id)
    assert store.get_experiment(run.info.experiment_id).name == f"cnnlab-{NAME}"
    assert run.info.run_name == result.name == f"cnn on {NAME}"
    assert run.data.tags["cnnlab.dataset"] == NAME
    assert run.data.params["dataset"] == r"/data/\x1b[31m\ncaf\udce9"
    [found] = store.search_runs([run.info.experiment_id], matches("tags.`cnnlab.dataset`", NAME))
    assert found.info.run_id == result.run_id
    again = run_queries.read_result(run)
    assert (again.class_names, again.dataset_name, again.recipe.dataset) == (CLASSES, NAME, FOLDER)

    version, _ = model_registry.register_run(experiment=f"cnnlab-{NAME}")
    assert version.name == """cnnlab-=$x$ [bold]it's "a|b" -1-<b>%20-1-2 {x} \\n 猫"""
    assert promotion.promote(version).promoted
    classifier = classify.load_classifier()
    assert classifier.class_names == CLASSES
    assert np.allclose(classifier.probabilities(oddly_named.test.images), result.test.probabilities, atol=1e-5)


def test_names_of_another_encoding_and_of_any_length_are_kept(store, digits):
    escaped = dataclasses.replace(digits, name="\x1b[1m" + os.fsdecode(b"caf\xe9\n"), source="folder/1")
    long = [dataclasses.replace(digits, name="\x1b" * 255 + end, source=f"folder/{end}") for end in "ab"]
    names = []
    for dataset in (escaped, *long):
        experiment = recorder.experiment_for(dataset)
        names.append(store.get_experiment(experiment).name)
        with recorder.start(experiment, f"cnn on {dataset.name}", params={}, tags={"dataset": dataset.name}) as run_id:
            run_logging.log_dataset(dataset)
        run = store.get_run(run_id)
        assert run.info.run_name.startswith(r"cnn on \x1b")
        assert len(run.info.run_name) <= 250  # what MLflow's databases hold
    assert names[0] == r"cnnlab-\x1b[1mcaf\udce9\n"
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 256


def test_a_failed_run_says_why_whatever_the_file_is_called(store, digits):
    with (
        pytest.raises(OSError),  # noqa: PT011  its words are looked at below
        recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}) as run_id,
    ):
        raise OSError(f"no such file: '{FOLDER}'")
    assert store.get_run(run_id).data.tags["cnnlab.reason"] == r"OSError: no such file: '/data/\x1b[31m\ncaf\udce9'"


@pytest.mark.parametrize(
    "name", ["it's", 'a "b"', """it's "b" 100%""", """it's "b" back\\slash""", "a_b", "x' OR 'a' = 'a", "猫", "a--b"]
)
def test_a_filter_finds_names_with_any_quotes(name, store):
    mlflow.create_experiment("named")
    experiment = store.get_experiment_by_name("named").experiment_id
    run = store.create_run(experiment, tags={"name": name})
    store.create_run(experiment, tags={"name": "another"})
    assert [r.info.run_id for r in store.search_runs([experiment], matches("tags.name", name))] == [run.info.run_id]


def test_a_pattern_holds_no_backslash():
    """To PostgreSQL and MySQL it would say that the next character is meant as it is."""
    assert matches("name", """it's "b" back\\slash""") == """name LIKE 'it_s "b" back_slash'"""
