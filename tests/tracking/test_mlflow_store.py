"""Test opening the store, and runs that end unexpectedly: pytest tests/tracking/test_mlflow_store.py"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

import cnnlab
from cnnlab.tracking import run_logging
from cnnlab.tracking.mlflow_store import expect_usable_store, open_store
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.ui_server import ui_links

recorder = Recorder()


def _start(folder, barrier, failures):
    os.chdir(folder)
    barrier.wait()
    try:
        open_store()
        recorder.experiment_for(cnnlab.load_dataset("digits", limit=20))
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.long
def test_three_processes_may_make_the_store_at_once(workplace):
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_start, args=(workplace, barrier, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0], failures.get(timeout=1)
    open_store()
    names = [e.name for e in mlflow.MlflowClient().search_experiments()]
    assert names.count("cnnlab-digits") == 1
    assert not [p for p in (workplace / "mlruns").iterdir() if p.name.startswith("tmp")]


def test_moved_store_finds_its_artifacts_and_models(store, small_cnn, digits, workplace, monkeypatch):
    result = cnnlab.fit_and_evaluate(cnnlab.build_model(small_cnn, digits), digits, small_cnn)
    there = workplace / "elsewhere"
    there.mkdir()
    shutil.move(workplace / "mlruns", there / "mlruns")
    monkeypatch.chdir(there)
    open_store()
    client = mlflow.MlflowClient()
    assert "curves.png" in {file.path for file in client.list_artifacts(result.run_id)}
    assert mlflow.pyfunc.load_model(result.model_uri).predict(digits.test.images[:1]).shape == (1, 10)
    assert client.get_experiment(recorder.experiment_for(digits)).artifact_location == "mlflow-artifacts:/"


KILLED = """
import os, signal, cnnlab
from cnnlab.tracking.mlflow_store import open_store
from cnnlab.tracking.recorder import Recorder
open_store()
recorder = Recorder()
dataset = cnnlab.load_dataset("digits", limit=20)
with recorder.start(recorder.experiment_for(dataset), "doomed", params={}, tags={}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_run_of_a_killed_process_is_closed_at_the_next_start(store):
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    experiments = [e.experiment_id for e in store.search_experiments()]
    [run] = store.search_runs(experiments)
    assert run.info.status == "RUNNING"
    with recorder.start(run.info.experiment_id, "alive", params={}, tags={}) as alive:
        open_store()
        assert store.get_run(run.info.run_id).info.status == "KILLED"
        assert store.get_run(alive).info.status == "RUNNING"
    assert "without closing" in store.get_run(run.info.run_id).data.tags["cnnlab.reason"]


def test_environment_variable_names_the_store(store_template, workplace, monkeypatch, digits):
    other = workplace / "other" / "mine.db"
    other.parent.mkdir()
    shutil.copy(store_template, other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    open_store()
    recorder.experiment_for(digits)
    assert not (workplace / "mlruns").exists()
    with sqlite3.connect(other) as connection:
        assert ("cnnlab-digits",) in connection.execute("SELECT name FROM experiments").fetchall()


def test_other_data_of_the_same_name_gets_another_experiment(store, picture_folder, workplace):
    first = cnnlab.load_dataset(picture_folder, image_size=8, val_fraction=0.2)
    there = workplace / "second" / "pictures"
    shutil.copytree(picture_folder, there)
    same = cnnlab.load_dataset(there, image_size=8, val_fraction=0.2)
    (there / "train/red/0.png").unlink()
    other = cnnlab.load_dataset(there, image_size=8, val_fraction=0.2)
    ids = [recorder.experiment_for(dataset) for dataset in (first, same, other)]
    assert ids[0] == ids[1] != ids[2]
    assert store.get_experiment(ids[2]).name.startswith("cnnlab-pictures-")


def test_deleted_experiment_is_explained(store, digits):
    store.delete_experiment(recorder.experiment_for(digits))
    with pytest.raises(cnnlab.LabError, match="mlflow experiments restore"):
        recorder.experiment_for(digits)


def _broken_database(workplace):
    (workplace / "mlruns").mkdir()
    (workplace / "mlruns/mlflow.db").write_bytes(b"this is no database" * 100)


@pytest.mark.parametrize("damage", [lambda w: (w / "mlruns").write_text("a file"), _broken_database])
def test_unusable_folder_is_one_sentence(damage, workplace):
    damage(workplace)
    before = sorted(workplace.rglob("*"))
    with pytest.raises(cnnlab.LabError, match=r"Expected to write the MLflow store in '.*mlruns'") as caught:
        open_store()
    assert "\n" not in str(caught.value)
    assert [p for p in sorted(workplace.rglob("*")) if p.name not in ("mlflow.db.lock", "artifacts")] == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_sentence(workplace):
    workplace.chmod(0o500)
    with pytest.raises(cnnlab.LabError, match="not a writable folder"):
        expect_usable_store()


def test_server_that_does_not_answer_is_reported_within_15_seconds(workplace, monkeypatch):
    with socket.socket() as silent:  # accepts connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in (f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1:9"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
            started = time.monotonic()
            with pytest.raises(cnnlab.LabError, match=f"Expected an MLflow server at http://{address}"):
                open_store()
            assert time.monotonic() - started < 15
    assert list(Path(workplace).iterdir()) == []


def test_an_address_that_is_not_a_store_is_refused(workplace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://server")
    with pytest.raises(cnnlab.LabError, match="Expected an MLflow store at htp://server"):
        open_store()


def test_ui_links_land_on_the_newest_comparison(store, digits):
    assert ui_links("http://here") == {"runs": "http://here"}
    experiment_id = recorder.experiment_for(digits)
    with (
        recorder.start(experiment_id, "parent", params={}, tags={"kind": "compare"}, description="of") as parent,
        recorder.start(experiment_id, "child", params={}, tags={}, parent_run_id=parent),
    ):
        pass
    with mlflow.start_run(parent):
        run_logging.describe_run("**some**")
        run_logging.describe_run("more")
    assert store.get_run(parent).data.tags["mlflow.note.content"] == "of\n\n**some**\n\nmore"
    links = ui_links("http://here")
    assert links["runs"].startswith(f"http://here/#/experiments/{experiment_id}/runs?")
    assert f"/runs/{parent}/artifacts" in links["figures"]
    view = json.loads(store.get_experiment(experiment_id).tags["mlflow.sharedViewState.cnnlab"])
    assert [run.info.run_name for run in store.search_runs([experiment_id], view["searchFilter"])] == ["child"]
    assert "metrics.`test_accuracy`" in view["selectedColumns"]

    [child] = store.search_runs([experiment_id], view["searchFilter"])
    with recorder.start(
        experiment_id,
        "of stored runs",
        params={},
        tags={"figure": "curves.png", "runs": f"{parent},{child.info.run_id}"},
    ) as stored:
        pass
    assert f"/runs/{stored}/artifacts/curves.png" in ui_links("http://here")["figures"]
    view = json.loads(store.get_experiment(experiment_id).tags["mlflow.sharedViewState.cnnlab"])
    names = {run.info.run_name for run in store.search_runs([experiment_id], view["searchFilter"])}
    assert names == {"parent", "child"}

    with recorder.start(experiment_id, "alone", params={}, tags={}):
        pass
    assert list(ui_links("http://here")) == ["runs"]
    view = json.loads(store.get_experiment(experiment_id).tags["mlflow.sharedViewState.cnnlab"])
    assert len(store.search_runs([experiment_id], view["searchFilter"])) == 4


@pytest.mark.parametrize(
    ("call", "statuses"),
    [("start_run", ["KILLED", "KILLED"]), ("end_run", ["FINISHED", "KILLED"])],
)
def test_a_signal_while_a_run_starts_or_ends_leaves_none_running(store, digits, monkeypatch, call, statuses):
    experiment_id, real = recorder.experiment_for(digits), getattr(mlflow, call)

    def interrupted(*args, **kwargs):
        result = real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    def parent_and_child():
        with recorder.start(experiment_id, "parent", params={}, tags={}) as parent:
            if call == "start_run":
                monkeypatch.setattr(mlflow, call, interrupted)
            with recorder.start(experiment_id, "child", params={}, tags={}, parent_run_id=parent):
                if call == "end_run":
                    monkeypatch.setattr(mlflow, call, interrupted)

    with pytest.raises(KeyboardInterrupt):
        parent_and_child()
    runs = store.search_runs([experiment_id], order_by=["attributes.start_time ASC"])
    assert sorted(run.info.status for run in runs) == statuses
    assert mlflow.active_run() is None


def test_what_only_reads_the_store_loads_no_keras():
    code = (
        "import sys, cnnlab.tracking.model_registry, cnnlab.tracking.ui_server; "
        "sys.exit(str({'keras', 'tensorflow'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
