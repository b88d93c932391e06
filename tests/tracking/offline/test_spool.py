"""Test recording on the disk while the server is away, and delivering it later."""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import pytest

import cnnlab
from cnnlab import compare, train
from cnnlab.tracking import mlflow_store as stores
from cnnlab.tracking import run_locks, run_logging, run_queries, server_checks
from cnnlab.tracking.offline import delivery, spool
from cnnlab.tracking.session import Session, opened_store
from cnnlab.tracking.store_location import SERVER_VARIABLE
from cnnlab.tracking.tag_names import RECORDED_AS, UNDELIVERED
from cnnlab.training import fitting
from tests.helpers.faulty_proxy import served

MLFLOW = "/api/2.0/mlflow"
CREATE_RUN, LOG_BATCH = f"{MLFLOW}/runs/create", f"{MLFLOW}/runs/log-batch"


@pytest.fixture
def server(store_template, tmp_path_factory, workplace, monkeypatch):
    database = tmp_path_factory.mktemp("server") / "server.db"
    shutil.copy(store_template, database)
    monkeypatch.setattr(delivery, "PATIENCE", 60)
    monkeypatch.setattr(delivery, "INTERVAL", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with served(database) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server


@contextlib.contextmanager
def a_run(digits, name="a run"):
    """A run with two epochs' metrics and a file, around a block."""
    with Session() as session:
        recorder = session.recorder()
        with recorder.start(recorder.experiment_for(digits), name, params={"epochs": 2}, tags={}) as run_id:
            run_logging.log_dataset(digits)
            mlflow.log_metric("loss", 3.0, step=0)
            yield run_id, recorder
            mlflow.log_metric("loss", 2.0, step=1)
            run_logging.log_results({"test_accuracy": 0.5}, {}, {"note.txt": "a text"})


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(delivery, "PATIENCE", 2)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def there(server, **kwargs):
    """Of all runs of the server: what they are, by name."""
    client = mlflow.MlflowClient(server.uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], **kwargs)
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
    return {run.info.run_name: run for run in found}


def whole(server, run):
    """All of a run that may be doubled or lost."""
    client = mlflow.MlflowClient(server.uri)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return (
        run.info.status,
        run.data.params,
        {
            k: [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, k)]
            for k in run.data.metrics
        },
        sorted((file.path, file.file_size) for file in client.list_artifacts(run.info.run_id)),
        [data.dataset.name for data in run.inputs.dataset_inputs],
        [(model.model_id, model.status) for model in models],
        [output.model_id for output in run.outputs.model_outputs] if run.outputs else [],
        UNDELIVERED in run.data.tags,
    )


def synced():
    return [(len(done.runs), done.error) for done in delivery.sync()]


@pytest.mark.long
def test_a_comparison_is_on_the_server_when_it_ends(server, small_cnn, capsys):
    comparison = compare.compare_models([small_cnn])
    [result] = comparison.results
    with stores.opened():
        run = mlflow.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == comparison.run_id
        assert run_queries.read_result(run_queries.find_run(run.data.tags[RECORDED_AS][:8])).history == result.history
        assert mlflow.keras.load_model(result.model_uri).output_shape == (None, 10)
        assert mlflow.models.get_model_info(result.model_uri).run_id == result.run_id
    assert whole(server, run)[-3:] == ([(result.model_uri[8:], "READY")], [result.model_uri[8:]], False)
    assert spool.entries() == []
    assert "warning" not in capsys.readouterr().err


@pytest.mark.long
def test_a_comparison_stays_in_the_spool_until_no_model_fails(server, small_cnn, monkeypatch):
    trained, original = [], fitting.fit

    def fail_once(part, dataset, recipe, *args, **kwargs):
        trained.append(recipe.seed)
        if len(trained) == 1:
            raise RuntimeError("no memory")
        return original(part, dataset, recipe, *args, **kwargs)

    monkeypatch.setattr(fitting, "fit", fail_once)
    recipes = [dataclasses.replace(small_cnn, epochs=1, seed=seed) for seed in (0, 1)]
    first = compare.compare_models(recipes)
    assert [entry.goes_on for entry in spool.entries()] == [True]
    # The server is in this process, where it makes MLflow look for artifacts in its store.
    monkeypatch.delenv(SERVER_VARIABLE)
    second = compare.compare_models(recipes)
    assert (trained, second.run_id, spool.entries()) == ([0, 1, 0], first.run_id, [])
    with stores.opened():
        assert "cnnlab.failed" not in mlflow.get_run(first.run_id).data.tags


def test_a_server_that_stops_in_an_epoch_costs_nothing(server, digits, impatient, capsys):
    with a_run(digits) as (run_id, recorder):
        wait_for(lambda: "a run" in there(server))  # while it runs
        server.stop()
    assert recorder.id_to_show(run_id) == run_id
    assert not recorder.server_ids
    said = capsys.readouterr().err
    assert f"not yet all delivered to {server.uri}: a run ({run_id[:8]})" in said
    assert "Connection refused" in said
    assert spool.undelivered().startswith(f"1 run is not yet delivered to {server.uri}: 'cnnlab sync'")
    assert [error for _, error in synced()] != [None]

    server.start()
    with pytest.raises(cnnlab.ArgumentError, match="deliver it there with 'cnnlab sync'"), opened_store():
        run_queries.find_finished_run(run_id)
    assert "1 run is not yet delivered" in capsys.readouterr().err
    assert there(server)["a run"].info.status == "RUNNING"
    assert synced() == [(1, None)]
    run = there(server)["a run"]
    facts = whole(server, run)
    assert facts[0] == "FINISHED"
    assert [(step, value) for step, _, value in facts[2]["loss"]] == [(0, 3.0), (1, 2.0)]
    assert facts[3] == [("note.txt", 6)]
    assert facts[4] == ["digits"]
    assert not facts[-1]
    assert synced() == []
    assert spool.undelivered() is None


def test_results_that_are_delivered_twice_are_recorded_once(server, digits, impatient, tmp_path):
    server.fault = lambda method, path: 500 if method == "POST" else None
    with a_run(digits) as (_, recorder):
        kept = recorder.entry.folder
    server.fault = lambda method, path: None
    assert there(server) == {}
    with pytest.raises(cnnlab.ArgumentError, match="Deliver it with 'cnnlab sync'"), stores.opened():
        run_queries.find_run(spool.runs_of(spool.entries()[0])[0]["run_id"])
    shutil.copytree(kept, tmp_path / "copy")
    assert synced() == [(1, None)]
    before = whole(server, there(server)["a run"])
    shutil.move(tmp_path / "copy", kept)  # as if nothing of it had ever been noted
    assert synced() == [(1, None)]
    assert whole(server, there(server)["a run"]) == before


@pytest.mark.long
def test_lost_answers_double_nothing(server, digits):
    """The server does what it is asked, and its answer does not arrive: once for every kind of request."""
    lost = set()

    def fault(method, path):
        kind = method, re.sub("(m-)?[0-9a-f]{32}", "ID", path)
        if method == "GET" or kind in lost:
            return None
        lost.add(kind)
        return "lost"

    server.fault = fault
    with a_run(digits):
        model = run_logging.log_model(
            cnnlab.build_model(cnnlab.Recipe(model="cnn", dataset="digits", filters=(4,)), digits), digits
        )
    assert model.startswith("models:/m-")
    for _ in range(20):  # each stops at the first answer that does not come
        synced()
    server.fault = lambda method, path: None
    assert {("POST", CREATE_RUN), ("POST", LOG_BATCH), ("POST", f"{MLFLOW}/logged-models")} <= lost
    assert len(lost) > 8
    facts = whole(server, there(server)["a run"])
    assert [step for step, _, _ in facts[2]["loss"]] == [0, 1]
    assert len(facts[5]) == len(facts[6]) == 1
    assert spool.entries() == []


@pytest.mark.parametrize("fault", [500, 429, "hangs"])
def test_a_training_does_not_wait_for_a_failing_server(server, digits, impatient, fault, capsys):
    stores.expect_usable_store()  # it has been reached before
    server.fault = lambda method, path: fault
    with Session() as session:
        recorder = session.recorder()
        with recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}):
            opened = time.monotonic()
            for epoch in range(20):
                mlflow.log_metric("loss", 1.0, step=epoch)
            assert time.monotonic() - opened < 20  # 20 calls, each in milliseconds, or at the machine's pace
    said = capsys.readouterr().err
    assert {500: "500", 429: "429", "hangs": "no answer in"}[fault] in said
    assert "cnnlab sync" in said
    server.fault = lambda method, path: None
    server.goes_on.set()
    assert synced() == [(1, None)]
    assert len(whole(server, there(server)["a run"])[2]["loss"]) == 20


def test_a_server_that_refuses_artifacts_only_gets_the_rest(server, digits, impatient, capsys):
    server.fault = lambda method, path: 503 if method == "PUT" else None
    with Session() as session:
        recorder = session.recorder()
        with recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}):
            run_logging.log_results({}, {}, {"note.txt": "a text"})
        wait_for(lambda: "PUT" in [method for method, _ in server.asked])
    run = there(server)["a run"]
    assert run.info.status == "RUNNING"  # not finished before all of it is there
    assert run.data.tags[UNDELIVERED].endswith(str(spool.entries()[0].folder))
    assert "503" in capsys.readouterr().err
    with stores.opened():  # whoever closes the runs of ended processes leaves it to the delivery
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
    server.fault = lambda method, path: None
    assert synced() == [(1, None)]
    assert whole(server, there(server)["a run"])[3] == [("note.txt", 6)]


def test_a_server_that_was_never_reached_is_refused(server, digits, impatient, workplace):
    server.stop()
    for reached in (False, True):
        if reached:
            server.start()
            stores.expect_usable_store()
            server.stop()
            with a_run(digits):
                pass
            assert len(spool.waiting()) == 1
        else:
            with pytest.raises(cnnlab.LabError, match="Received no answer"), a_run(digits):
                pass
            assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("how", ["active", "variable"])
def test_below_a_run_of_the_user_s_on_the_server(server, digits, monkeypatch, how):
    client = mlflow.MlflowClient(server.uri)
    experiment_id = client.create_experiment("theirs")
    with contextlib.ExitStack() as theirs:
        if how == "active":
            mlflow.set_tracking_uri(server.uri)
            outer = theirs.enter_context(mlflow.start_run(experiment_id=experiment_id)).info.run_id
        else:
            outer = client.create_run(experiment_id).info.run_id
            monkeypatch.setenv("MLFLOW_RUN_ID", outer)
        with a_run(digits):
            pass
        assert mlflow.get_tracking_uri() == server.uri
        assert os.environ.get("MLFLOW_RUN_ID") == (outer if how == "variable" else None)
    mlflow.set_tracking_uri(None)
    run = there(server)["a run"]
    assert run.data.tags["mlflow.parentRunId"] == outer
    assert run.info.experiment_id == experiment_id


def test_a_disk_that_is_full_at_the_end_loses_nothing_that_was_there(server, digits, monkeypatch, capsys):
    """Neither the results nor the run's end can be written."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    end_run = mlflow.end_run
    monkeypatch.setattr(mlflow, "end_run", full)
    with pytest.raises(OSError, match="No space"), a_run(digits):
        pass
    monkeypatch.setattr(mlflow, "end_run", end_run)
    mlflow.tracking.fluent._active_run_stack.set([])
    assert "could not be closed" in capsys.readouterr().err
    [entry] = spool.entries()
    assert [run["status"] for run in spool.runs_of(entry)] == ["RUNNING"]
    assert there(server)["a run"].data.metrics == {"loss": 2.0, "test_accuracy": 0.5}
    assert synced() == [(1, "a run in it that has not ended")]  # this process lives
    monkeypatch.setattr(run_locks, "_is_alive", lambda process: False)
    assert synced() == [(1, None)]
    assert there(server)["a run"].info.status == "KILLED"


def test_what_a_killed_process_left_is_delivered_as_killed(server, digits):
    script = """
import os, mlflow, cnnlab
from cnnlab.tracking.offline import delivery
from cnnlab.tracking.session import Session
digits = cnnlab.load_dataset("digits", limit=20)
delivery.Sender._run = lambda self: None
with Session() as session:
    recorder = session.recorder()
    with recorder.start(recorder.experiment_for(digits), "killed", params={}, tags={}):
        mlflow.log_metric("loss", 3.0, step=0)
        os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    journal = spool.entries()[0].folder / f"delivered-{server_checks.server_key(server.uri)}.jsonl"
    journal.write_text('{"run": "ab')  # in the midst of a note
    assert synced() == [(1, None)]
    run = there(server)["killed"]
    assert run.info.status == "KILLED"
    assert "ended without closing" in run.data.tags["cnnlab.reason"]
    assert run.data.metrics == {"loss": 3.0}


def test_an_interrupted_search_goes_on_in_the_same_run(server, digits):
    def search(recorder, **kwargs):
        experiment_id = recorder.experiment_for(digits)
        return recorder.start(experiment_id, "search", params={}, tags={"search": "key"}, **kwargs)

    def interrupted():
        with Session() as session, search(session.recorder(resume_key="search-a")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert there(server)["search"].info.status == "KILLED"
    assert spool.undelivered() is None
    assert synced() == []
    with Session() as session:
        recorder = session.recorder(resume_key="search-a")
        before = run_queries.newest_run(recorder.experiment_for(digits), search="key")
        with search(recorder, resumed_run_id=before) as run_id:
            mlflow.log_metric("score", 0.5)
    run = there(server)["search"]
    assert run.info.run_id == recorder.id_to_show(run_id) != run_id
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"score": 0.5})
    assert "cnnlab.reason" not in run.data.tags
    assert spool.entries() == []


@pytest.mark.parametrize("by_id", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_interrupted_training_goes_on_in_its_run_on_the_server(server, small_cnn, monkeypatch, by_id):
    monkeypatch.setenv("CNNLAB_CHECKPOINT", "0")
    with monkeypatch.context() as patch:
        patch.setattr("cnnlab.train._metrics", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train.train_model(small_cnn)
    before = there(server)["cnn on digits"]
    assert before.info.status == "KILLED"
    assert synced() == []
    result = train.resume_run(before.info.run_id[:8]) if by_id else train.train_model(small_cnn)
    assert result.run_id == before.info.run_id
    run = there(server)["cnn on digits"]
    facts = whole(server, run)
    assert facts[0] == "FINISHED"
    assert "after epoch 2" in run.data.tags["cnnlab.resumed"]
    assert [step for step, _, _ in facts[2]["loss"]] == [0, 1]
    assert len(facts[5]) == 1
    assert spool.entries() == []
