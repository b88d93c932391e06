"""Test searches for hyperparameters: pytest tests/tuning/test_search.py"""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cnnlab
from cnnlab.models.model_table import Range
from cnnlab.tuning.search import run_search
from tests.helpers.small_searches import SPACE, runs_by_kind, small_search


def artifact(store, run_id, path):
    return Path(store.download_artifacts(run_id, path)).read_text()


def test_search_tracks_every_trial_and_tests_only_the_winner(store, capsys):
    result = run_search(small_search(finalists=2))
    kinds = runs_by_kind(store)
    assert {kind: len(runs) for kind, runs in kinds.items()} == {"search": 1, "trial": 3, "final": 2, "train": 1}
    [parent], [winner] = kinds["search"], kinds["train"]
    assert (parent.info.run_id, winner.info.run_id) == (result.parent_run_id, result.winner_run_id)
    for run in (*kinds["trial"], *kinds["final"], winner):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
    for run in (*kinds["trial"], *kinds["final"]):
        assert not [name for name in run.data.metrics if name.startswith("test")]
        assert run.data.metrics["score"] == run.data.metrics["final_val_accuracy"]
        assert run.data.metrics["score"] == pytest.approx(run.data.metrics["val_accuracy"], abs=1e-6)
        assert 1e-3 <= float(run.data.params["learning_rate"]) <= 1e-2
        assert run.outputs is None or not run.outputs.model_outputs
    assert "test_accuracy" in winner.data.metrics
    assert winner.outputs.model_outputs
    assert len({run.data.params["seed"] for run in kinds["trial"]}) == 3

    assert parent.data.params["space.learning_rate"] == "0.001:0.01 (log)"
    assert parent.data.metrics["completed_trials"] == 3
    rows = list(csv.DictReader(artifact(store, parent.info.run_id, "trials.csv").splitlines()))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert {row["run_id"] for row in rows} == {run.info.run_id for run in kinds["trial"]}
    paths = {file.path for file in store.list_artifacts(parent.info.run_id)}
    assert {"best_so_far.png", "scores.png", "parallel_coordinates.png", "finalists.json", "winner.json"} <= paths

    means = json.loads(artifact(store, parent.info.run_id, "finalists.json"))
    assert len(means) == 2
    assert parent.data.metrics["best_val_accuracy"] == max(means.values())
    best = max(means, key=means.get)
    [trial] = [run for run in kinds["trial"] if run.info.run_name == best]
    learning_rate = float(trial.data.params["learning_rate"])
    assert parent.data.tags["cnnlab.best"].startswith(f"{best}: learning_rate {learning_rate:.3g}, dense_units ")
    assert result.winner_values.keys() == SPACE.keys()
    assert {key: str(value) for key, value in result.winner_values.items()}.items() <= winner.data.params.items()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert len(lines) == 3 + 2
    assert "3 of 3 done" in lines[2]
    assert " trained again with 1 new seed: mean val_accuracy 0." in lines[3]


@pytest.mark.long
def test_the_same_search_again_repeats_nothing_and_more_trials_go_on(store):
    result = run_search(small_search(finalists=2))
    again = run_search(small_search(finalists=2))
    assert again == result
    more = run_search(small_search(trials=4, finalists=2))
    assert more.parent_run_id == result.parent_run_id
    assert len(runs_by_kind(store)["trial"]) == 4
    # Other settings after the end are a new search.
    finals = len(runs_by_kind(store)["final"])
    other = run_search(small_search(objective="val_loss", trials=1, final_seeds=2))
    assert other.parent_run_id != result.parent_run_id
    assert len(runs_by_kind(store)["final"]) - finals == 2


@pytest.mark.long
def test_a_trials_recipe_repeats_it(store):
    run_search(small_search(trials=2))
    trial = runs_by_kind(store)["trial"][0]
    recipe = cnnlab.Recipe.from_json(artifact(store, trial.info.run_id, "recipe.json"))
    dataset = cnnlab.load_dataset("digits", limit=recipe.limit, seed=recipe.split_seed)
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(recipe, dataset), dataset, recipe)
    assert result.history["val_accuracy"][-1] == pytest.approx(trial.data.metrics["val_accuracy"], abs=1e-6)
    assert result.history["loss"][-1] == pytest.approx(trial.data.metrics["loss"], rel=1e-4)


KILLED = """
import os, signal, sys
sys.path.insert(0, {checkout!r})
from tests.helpers.small_searches import small_search
from cnnlab.tuning import search, trials
fit, calls = trials.fit_and_evaluate, []
def fit_once(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        import keras
        end = lambda batch, logs: os.kill(os.getpid(), signal.{signal})
        kwargs["callbacks"] = [keras.callbacks.LambdaCallback(on_train_batch_end=end)]
    return fit(*args, **kwargs)
trials.fit_and_evaluate = fit_once
from cnnlab.utils.startup import job
with job():
    search.run_search(small_search())
"""


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_a_killed_search_resumes_where_it_was(store, name):
    program = KILLED.format(checkout=str(Path(__file__).parents[2]), signal=name)
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert killed.returncode == (-signal.SIGKILL if name == "SIGKILL" else 128 + signal.SIGTERM), killed.stderr
    before = {run.info.run_id: run.info.status for run in runs_by_kind(store)["trial"]}
    assert sorted(before.values()) == ["FINISHED", "RUNNING" if name == "SIGKILL" else "KILLED"]

    with pytest.raises(cnnlab.ArgumentError, match=r"unfinished search 'cnn'.*objective was val_accuracy, is val_loss"):
        run_search(small_search(objective="val_loss"))

    result = run_search(small_search())
    kinds = runs_by_kind(store)
    assert [row["trial"] for row in result.rows] == [0, 1, 2]
    assert len(kinds["trial"]) == 3
    assert len(kinds["search"]) == 1
    assert {run.info.status for runs in kinds.values() for run in runs} == {"FINISHED"}
    finished = {run_id for run_id, status in before.items() if status == "FINISHED"}
    assert finished <= {run.info.run_id for run in kinds["trial"]}
    for run in kinds["trial"]:
        assert len(store.get_metric_history(run.info.run_id, "val_accuracy")) == 1
    assert "cnnlab.reason" not in kinds["search"][0].data.tags


# With two workers it failed twice on a busy machine, and not in five other runs; the cause is not known yet.
SOMETIMES = pytest.mark.xfail(strict=False, reason="fails now and then on a busy machine")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=[pytest.mark.long, SOMETIMES])])
def test_three_failures_in_a_row_end_the_search(store, workers):
    # Three blocks of such kernels do not fit on 32x32 pixels.
    recipe = cnnlab.Recipe(dataset="digits", limit=150, epochs=1)
    space = {"kernel_size": (10, 11), "learning_rate": Range(1e-3, 1e-2, log=True)}
    search = small_search(recipe=recipe, space={**space, "filters": (4,), "blocks": (3,)}, trials=9)
    with pytest.raises(cnnlab.LabError, match=r"3 failures in a row, the last one: Expected images large enough"):
        run_search(search, workers=workers)
    kinds = runs_by_kind(store)
    statuses = sorted(run.info.status for run in kinds["trial"])
    assert statuses[:3] == ["FAILED"] * 3
    assert len(statuses) < 3 + workers  # another worker may have had one under way
    assert set(statuses) <= {"FAILED", "KILLED"}
    assert kinds["search"][0].info.status == "FAILED"
    assert "Expected images large enough" in kinds["trial"][0].data.tags["cnnlab.reason"]


def test_a_diverging_trial_fails_and_the_search_goes_on(store, monkeypatch):
    from cnnlab.tuning import trials

    fit, calls = trials.fit_and_evaluate, []

    def diverge_once(model, dataset, recipe, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            weights = [weight * float("nan") for weight in model.get_weights()]
            model.set_weights(weights)
        return fit(model, dataset, recipe, **kwargs)

    monkeypatch.setattr(trials, "fit_and_evaluate", diverge_once)
    result = run_search(small_search())
    assert [row["status"] for row in result.rows] == ["COMPLETED", "FAILED", "COMPLETED"]
    statuses = sorted(run.info.status for run in runs_by_kind(store)["trial"])
    assert statuses == ["FAILED", "FINISHED", "FINISHED"]


@pytest.mark.long
def test_damaged_state_is_reported_with_what_to_do(store, monkeypatch):
    from cnnlab.tuning import trials

    fit, calls = trials.fit_and_evaluate, []

    def interrupt_after_the_trial(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(trials, "fit_and_evaluate", interrupt_after_the_trial)
    with pytest.raises(KeyboardInterrupt):
        run_search(small_search(trials=1))
    monkeypatch.setattr(trials, "fit_and_evaluate", fit)
    [state] = Path("mlruns/searches/cnn").glob("trial_*/trial.json")
    state.write_text(state.read_text()[:20])
    with pytest.raises(cnnlab.LabError, match=r"trial.json' to be a search's state.*with restart"):
        run_search(small_search(trials=2))
    result = run_search(small_search(trials=1), restart=True)
    assert len(result.rows) == 1


def test_search_never_validates_on_the_test_set():
    with pytest.raises(cnnlab.ArgumentError, match="val_fraction above 0"):
        small_search(recipe=cnnlab.Recipe(val_fraction=0))


@pytest.mark.parametrize("tuner", ["hyperband", pytest.param("bayesian", marks=pytest.mark.long)])
def test_a_search_ends_where_all_recipes_were_tried_and_says_so(store, tuner, capsys):
    recipe = cnnlab.Recipe(dataset="digits", limit=150, filters=(4,), epochs=3)
    result = run_search(small_search(recipe=recipe, space={"dense_units": (8, 16)}, tuner=tuner, trials=9))
    assert [row["status"] for row in result.rows] == ["COMPLETED"] * len(result.rows)
    if tuner == "hyperband":
        assert [row["epochs"] for row in result.rows] == [1, 1, 3]
    else:
        assert sorted(row["dense_units"] for row in result.rows) == [8, 16]
    said = "All 2 recipes of this space were tried."
    assert said in capsys.readouterr().out
    assert said in store.get_run(result.parent_run_id).data.tags["mlflow.note.content"]
    assert store.get_run(result.winner_run_id).data.params["epochs"] == "3"


@pytest.mark.long
def test_two_workers_share_a_search(store, capfd):
    space = {"blocks": (1, 2), "filters": (4, 8), **SPACE}
    result = run_search(small_search(space=space, trials=2), workers=2)
    printed = capfd.readouterr().out.splitlines()
    trials = [line for line in printed if " done, " in line]
    assert len(trials) == 2
    assert all("; blocks " in line for line in trials)
    assert printed[2:4] == trials  # after what the data is; the workers themselves say nothing
    assert len([line for line in printed if line.startswith("digits: ")]) == 1
    assert [row["status"] for row in result.rows] == ["COMPLETED"] * 2
    kinds = runs_by_kind(store)
    assert len(kinds["trial"]) == 2
    assert len({run.data.tags["cnnlab.process"] for run in kinds["trial"]}) == 2
