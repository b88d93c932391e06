"""Test resuming interrupted trainings: pytest tests/test_resume.py"""

import dataclasses
import hashlib
import os
import shutil
import time

import keras
import mlflow
import numpy as np
import pytest
from mlflow.entities import LoggedModelOutput

import cnnlab
from cnnlab import compare, train
from cnnlab.data.dataset import load_dataset
from cnnlab.resume import training_key
from cnnlab.tracking import checkpoint_files, provenance, run_logging, run_queries
from cnnlab.tracking.mlflow_store import opened
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.run_locks import alive
from cnnlab.training import checkpointing, fitting
from cnnlab.tuning.trials import SCORE, Place

recorder = Recorder()

RATE = fitting.LearningRate


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setenv("CNNLAB_CHECKPOINT", "0")


@pytest.fixture
def recipe(small_cnn):
    return dataclasses.replace(small_cnn, epochs=4, deterministic=True, dropout=0.2)


@pytest.fixture
def interrupt(monkeypatch):
    """Ends trainings with Ctrl-C at the beginning of an epoch: the first so many reach their end."""

    def at(epoch, spared=0, then=lambda: None):
        left = [spared]

        class Interrupting(RATE):
            def on_epoch_begin(self, number, logs=None):
                if number == epoch:
                    left[0] -= 1
                    if left[0] < 0:
                        then()
                        raise KeyboardInterrupt

        monkeypatch.setattr(fitting, "LearningRate", Interrupting)

    return at


def steps(client, run_id, name="loss"):
    return [metric.step for metric in sorted(client.get_metric_history(run_id, name), key=lambda m: m.step)]


def test_the_same_command_resumes_the_same_run(store, recipe, interrupt, capsys, monkeypatch):
    whole = train.train_model(recipe)
    kept = checkpoint_files.checkpoint_folder()

    def first_checkpoint_comes_back():  # so that two epochs were logged that are trained again
        [file] = kept.glob("*.npz")
        mlflow.flush_async_logging()
        shutil.copy("first.npz", file)

    real = checkpointing.Checkpoint.write

    def write(self, progress, arrays):
        real(self, progress, arrays)
        if len(progress["history"]["loss"]) == 1:
            shutil.copy(self.file, "first.npz")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.Checkpoint, "write", write)
        interrupt(3, then=first_checkpoint_comes_back)
        with pytest.raises(KeyboardInterrupt):
            train.train_model(recipe)
    [file] = kept.glob("*.npz")
    run_id = file.stem
    assert run_id != whole.run_id  # a finished one is not gone on with
    assert steps(store, run_id) == [0, 1, 2]
    monkeypatch.setattr(fitting, "LearningRate", RATE)
    resumed = train.train_model(recipe)
    assert resumed.run_id == run_id
    assert f"going on with run {run_id[:8]} after epoch 1 of 4" in capsys.readouterr().out
    assert resumed.history == whole.history
    np.testing.assert_array_equal(resumed.test.probabilities, whole.test.probabilities)
    for name, values in whole.history.items():
        assert steps(store, run_id, name) == [0, 1, 2, 3]
        assert [m.value for m in store.get_metric_history(run_id, name)] == pytest.approx(values)
    run = store.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cnnlab.resumed"] == "after epoch 1 of 4"
    assert "cnnlab.reason" not in run.data.tags
    assert run.data.params == store.get_run(whole.run_id).data.params
    assert not list(kept.glob("*"))


def test_a_run_is_resumed_by_its_id(store, recipe, interrupt, monkeypatch, capsys):
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        train.train_model(recipe)
    [one] = checkpoint_files.stored_checkpoints()
    monkeypatch.setattr(fitting, "LearningRate", RATE)
    with alive(one.run_id), pytest.raises(cnnlab.LabError, match="another process works on it"):
        train.resume_run(one.run_id[:8])
    assert store.get_run(one.run_id).info.status == "KILLED"
    other = load_dataset("digits", limit=140)
    changed = dataclasses.replace(recipe, dropout=0.3)
    with pytest.raises(cnnlab.ArgumentError, match=r"dropout was 0\.2, is 0\.3; other images"):
        cnnlab.fit_and_evaluate(cnnlab.build_model(changed, other), other, changed, resume_run_id=one.run_id)
    whole = one.file.read_bytes()
    one.file.write_bytes(whole[:-1000])
    with pytest.raises(cnnlab.LabError, match="Received a damaged file"):
        train.resume_run(one.run_id)
    one.file.write_bytes(whole)
    result = train.resume_run(one.run_id[:8])
    assert result.run_id == one.run_id
    assert steps(store, one.run_id) == [0, 1, 2, 3]
    with pytest.raises(cnnlab.ArgumentError, match=r"Expected an interrupted run\. Received: .* which is FINISHED"):
        train.resume_run(one.run_id)


def test_a_model_that_a_kill_left_half_written_is_not_the_one_that_is_read(store, recipe, monkeypatch):
    log_model = run_logging.Model.log

    def after_a_kill(*args, **kwargs):
        """As where MLflow was killed between naming a model and writing it, and the run is gone on with."""
        run_id = mlflow.active_run().info.run_id
        for _ in range(6):  # they are listed by ids that are random
            half = store.create_logged_model(store.get_run(run_id).info.experiment_id, "model", run_id)
            store.log_outputs(run_id, [LoggedModelOutput(half.model_id, step=0)])
        return log_model(*args, **kwargs)

    monkeypatch.setattr(run_logging.Model, "log", after_a_kill)
    result = train.train_model(dataclasses.replace(recipe, epochs=1))
    run = store.get_run(result.run_id)
    assert len(run.outputs.model_outputs) == 7
    with opened():
        assert run_queries.read_result(run).model_uri == result.model_uri


def test_a_file_of_the_recipe_is_read_once_for_its_digest(workplace, monkeypatch):
    read, digest = [], provenance.hashlib.file_digest
    monkeypatch.setattr(
        provenance.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind)
    )
    file = workplace / "some.weights.h5"
    file.write_bytes(b"one")
    recipe = cnnlab.Recipe(model="vgg16", dataset="digits", weights="some.weights.h5")
    digits = load_dataset("digits", limit=100)
    keys = [training_key(recipe, digits) for _ in range(3)]
    assert provenance.file_tags(recipe) == {"weights_sha256": hashlib.sha256(b"one").hexdigest()}
    assert read == [str(file)]
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # on file systems of coarse times too
    assert len({*keys, training_key(recipe, digits)}) == 2
    assert read == [str(file)] * 2


@pytest.mark.long
def test_a_damaged_checkpoint_and_restart_begin_anew(store, recipe, interrupt, monkeypatch, capsys):
    short = dataclasses.replace(recipe, epochs=2)
    interrupt(1)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.train_model(short, restart=True)
    first, second = checkpoint_files.stored_checkpoints()
    for one in (first, second):
        one.file.write_bytes(one.file.read_bytes()[:-100])
    monkeypatch.setattr(fitting, "LearningRate", RATE)
    result = train.train_model(short)
    assert result.run_id not in (first.run_id, second.run_id)
    assert capsys.readouterr().err.count("Received a damaged file") == 2
    assert steps(store, result.run_id) == [0, 1]
    assert checkpoint_files.stored_checkpoints() == []


@pytest.mark.long
def test_a_comparison_resumes_with_what_is_left(store, recipe, interrupt, monkeypatch, capsys):
    recipes = [dataclasses.replace(recipe, epochs=2, seed=seed) for seed in range(3)]
    interrupt(1, spared=1)
    with pytest.raises(KeyboardInterrupt):
        compare.compare_models(recipes)
    before = {run.info.run_id: run for run in store.search_runs(["1"])}
    monkeypatch.setattr(fitting, "LearningRate", RATE)
    comparison = compare.compare_models(recipes)
    said = capsys.readouterr().out
    assert f"Going on with comparison {comparison.run_id[:8]}" in said
    assert said.count("trained already") == 1
    assert said.count("going on with run") == 1
    after = {run.info.run_id: run for run in store.search_runs(["1"])}
    assert before.keys() < after.keys()
    assert len(after) == 4
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert [result.recipe.seed for result in comparison.results] == [0, 1, 2]
    for result in comparison.results:
        assert steps(store, result.run_id) == [0, 1]
        assert store.get_run(result.run_id).data.tags["mlflow.parentRunId"] == comparison.run_id
    finished = comparison.results[0].run_id
    assert before[finished].info.end_time == after[finished].info.end_time


@pytest.mark.long
def test_an_interrupted_trial_is_resumed(store, recipe, digits, interrupt, monkeypatch, capsys):
    search = type("Search", (), {"objective": "val_accuracy"})
    recipe = recipe.with_defaults()  # as a search hands it on
    with opened(), recorder.start("0", "search", params={}, tags={"kind": "search"}) as parent_run_id:
        place = Place("0", parent_run_id, digits, {})
        interrupt(2)
        with pytest.raises(KeyboardInterrupt):
            place.scored_run(search, recipe, "trial", "1", "trial 1")
        [before] = place.children(kind="trial")
        monkeypatch.setattr(fitting, "LearningRate", RATE)
        with pytest.raises(cnnlab.ArgumentError, match="which a search made"):
            run_queries.find_interrupted_run(before["run_id"])
        score = place.scored_run(search, recipe, "trial", "1", "trial 1")
        [after] = place.children(kind="trial")
    assert after["run_id"] == before["run_id"]
    assert (after["status"], after["metrics"][SCORE]) == ("FINISHED", score)
    assert steps(store, after["run_id"]) == [0, 1, 2, 3]
    assert "trial 1: going on with run" in capsys.readouterr().out


def test_checkpoints_that_nobody_resumes_are_removed_and_named(store, capsys):
    folder = checkpoint_files.checkpoint_folder()
    folder.mkdir()
    runs = {status: store.create_run("0").info.run_id for status in ("FINISHED", "KILLED", "FAILED", "RUNNING")}
    for status, run_id in runs.items():
        store.set_terminated(run_id, status)
        (folder / f"{run_id}.npz").write_bytes(b"1")
    deleted = store.create_run("0").info.run_id
    store.delete_run(deleted)
    ago = time.time() - 15 * 86400
    for name in (f"{deleted}.npz", f"{'0' * 32}.npz", "notes.npz", f"{deleted}-x.part"):
        (folder / name).write_bytes(b"1")
        os.utime(folder / name, (ago, ago))
    os.utime(folder / f"{runs['FAILED']}.npz", (ago, ago))
    checkpoint_files.sweep()
    left = {file.name for file in folder.iterdir()}
    assert left == {f"{runs['KILLED']}.npz", f"{runs['RUNNING']}.npz", "notes.npz"}
    said = capsys.readouterr().out
    assert said.count("Removed the checkpoint of run") == 4
    assert "kept for 14 days" in said


def test_checkpoints_are_placed_and_timed_as_configured(store, monkeypatch, workplace):
    assert checkpoint_files.checkpoint_folder() == workplace / "mlruns" / "checkpoints"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://user:secret@lab:5000")
    assert checkpoint_files.checkpoint_folder().is_relative_to(os.environ["CNNLAB_CACHE"])
    for given, seconds in (("none", None), ("0", 0), ("90", 90), ("", 60)):
        monkeypatch.setenv("CNNLAB_CHECKPOINT", given)
        assert cnnlab.RunOptions().checkpoint_seconds == seconds
    for given in ("-1", "often", "nan"):
        monkeypatch.setenv("CNNLAB_CHECKPOINT", given)
        with pytest.raises(cnnlab.ArgumentError, match="Expected CNNLAB_CHECKPOINT"):
            cnnlab.RunOptions()


def test_a_diverged_training_leaves_no_checkpoint(store, recipe, digits):
    class Diverge(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                assert checkpoint_files.stored_checkpoints()
                self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])

    with pytest.raises(cnnlab.LabError, match="Expected a finite loss"), opened():
        cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, digits), digits, recipe, callbacks=[Diverge()])
    assert checkpoint_files.stored_checkpoints() == []


def test_a_split_of_small_classes_has_a_key_of_its_own(small_cnn):
    dataset, recipe = load_dataset("digits", limit=150), small_cnn.with_defaults()
    apportioned, other = (
        dataclasses.replace(dataset, apportioned=True, val=val) for val in (dataset.val, dataset.test)
    )
    assert len({training_key(recipe, one) for one in (dataset, apportioned, other)}) == 3


def test_a_finished_run_is_trained_for_more_epochs_as_if_it_had_had_them(store, recipe, capsys):
    whole = train.train_model(recipe)
    first = train.train_model(dataclasses.replace(recipe, epochs=2))
    longer = train.resume_run(first.run_id[:8], epochs=4)
    assert len({whole.run_id, first.run_id, longer.run_id}) == 3
    assert "for epochs 3 to 4, as a new run" in capsys.readouterr().out
    assert longer.history == whole.history
    np.testing.assert_array_equal(longer.test.probabilities, whole.test.probabilities)
    assert (longer.recipe.epochs, longer.kept_epoch, longer.train_seconds > first.train_seconds) == (4, 4, True)
    run, tags = store.get_run(longer.run_id), store.get_run(longer.run_id).data.tags
    assert (tags["cnnlab.continues"], tags["cnnlab.optimizer_state"]) == (
        first.run_id,
        f"as run {first.run_id[:8]} left it",
    )
    assert run.data.params == store.get_run(whole.run_id).data.params
    for name, values in whole.history.items():
        assert steps(store, longer.run_id, name) == [0, 1, 2, 3]
        assert [m.value for m in store.get_metric_history(longer.run_id, name)] == pytest.approx(values)
    [curve, _] = compare.compare_runs([longer.run_id, first.run_id]).results
    assert curve.history == longer.history
    with pytest.raises(cnnlab.ArgumentError, match=r"more epochs than the 4 that run .* has\. Received: 4"):
        train.resume_run(longer.run_id, epochs=4)


@pytest.mark.long
def test_more_epochs_of_a_run_without_its_optimizer_begin_that_anew(store, recipe, monkeypatch, capsys, interrupt):
    recipe = dataclasses.replace(recipe, epochs=3, patience=1, learning_rate=0.1, schedule="cosine")
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "MOST_STATE", 0)
        first = train.train_model(recipe)
    trained = len(first.history["loss"])
    assert first.kept_epoch == 1 + int(np.argmin(first.history["val_loss"]))
    interrupt(trained + 1)
    with pytest.raises(KeyboardInterrupt):
        train.resume_run(first.run_id, epochs=trained + 3)
    assert "did not keep its optimizer's state, which begins anew" in capsys.readouterr().err
    [stored] = checkpoint_files.stored_checkpoints()
    monkeypatch.setattr(fitting, "LearningRate", RATE)
    longer = train.resume_run(first.run_id, epochs=trained + 3)  # the same command resumes it
    assert longer.run_id == stored.run_id
    assert {name: values[:trained] for name, values in longer.history.items()} == first.history
    assert longer.kept_epoch == 1 + int(np.argmin(longer.history["val_loss"]))  # of all epochs
    assert longer.validation.loss == pytest.approx(min(longer.history["val_loss"]), rel=1e-4)
    rates = longer.history["learning_rate"][trained:]
    assert rates == sorted(rates, reverse=True)  # one cosine over the further epochs
    assert store.get_run(longer.run_id).data.tags["cnnlab.optimizer_state"] == "begins anew"
    changed = store.get_run(longer.run_id).info.run_id
    store.set_tag(changed, "cnnlab.dataset_digest", "other")
    with pytest.raises(cnnlab.ArgumentError, match="Received: another dataset"):
        train.resume_run(changed, epochs=30)
