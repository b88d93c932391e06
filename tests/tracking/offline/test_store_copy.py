"""Test copying runs and models from one store to another: pytest tests/tracking/offline/test_store_copy.py"""

import contextlib
import os
import shutil
import sqlite3
import tarfile
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.entities import LoggedModelInput, Metric

import cnnlab
from cnnlab import compare, train
from cnnlab.cli.main import cli
from cnnlab.tracking import mlflow_store, model_registry, promotion, run_queries, store_location
from cnnlab.tracking.offline import run_copy, store_copy
from tests.helpers.faulty_proxy import served
from tests.helpers.store_contents import contents

FIXTURES = Path(__file__).parents[2] / "fixtures"


@contextlib.contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def uri_of(folder):
    return store_location.sqlite_uri(folder / "mlruns" / "mlflow.db")


def rows_of(database):
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


@pytest.fixture(scope="module")
def original(store_template, tmp_path_factory):
    """A store with a comparison of two small models, both registered (as 1 and 3), described and promoted."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "mlruns").mkdir()
    shutil.copy(store_template, folder / "mlruns" / "mlflow.db")
    recipe = {"model": "cnn", "dataset": "digits", "filters": (8, 8), "dense_units": 16, "epochs": 2, "limit": 150}
    with working_in(folder), pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        patched.setenv("CNNLAB_CACHE", str(folder / "cache"))
        comparison = compare.compare_models([cnnlab.Recipe(**recipe, seed=seed) for seed in (0, 1)])
        ids = [result.run_id for result in comparison.results]
        again = compare.compare_runs(ids)
        first, _ = model_registry.register_run(ids[0], name="digits")
        with mlflow_store.opened():
            client = mlflow.MlflowClient()
            client.delete_model_version("digits", client.create_model_version("digits", "nothing", ids[0]).version)
        second, _ = model_registry.register_run(ids[1], name="digits")
        assert (first.number, second.number) == (1, 3)
        promotion.promote(first)
        promotion.promote(second, force=True)
        with mlflow_store.opened():
            client.set_registered_model_alias("digits", "kept", 1)
            client.update_model_version("digits", 1, "a description")
            client.set_registered_model_tag("digits", "mine", "a tag")
            client.set_tag(ids[0], "mlflow.note.content", "a note")
            client.log_metric(ids[0], "mine", float("nan"), step=3)
            model = comparison.results[0].model_uri.removeprefix("models:/")
            client.log_batch(ids[0], [Metric("of_the_model", 0.5, 1000, 2, model)])
            client.log_inputs(again.run_id, models=[LoggedModelInput(model)])
    return folder, comparison.run_id, ids, again.run_id


def said(lines):
    """The sentences of a copy, without those on single runs and versions."""
    return [line for line in lines if not line.startswith("copied: ") or "run," in line or "runs," in line]


def test_a_copy_is_equal_and_the_second_changes_nothing(original, workplace):
    folder, parent, ids, again = original
    before = rows_of(folder / "mlruns" / "mlflow.db")
    assert said(store_copy.import_runs(str(folder))) == [
        "champion of digits is version 3",
        "kept of digits is version 1",
        "copied: 4 runs, 2 versions, 2 aliases",
    ]
    assert contents(uri_of(workplace)) == contents(uri_of(folder))
    assert contents(uri_of(folder))["runs"][again]["tags"]["cnnlab.runs"] == ",".join(ids)
    database = workplace / "mlruns" / "mlflow.db"
    copied, files = rows_of(database), sorted(workplace.rglob("mlruns/artifacts/**/*"))
    assert list(store_copy.import_runs(str(folder / "mlruns"))) == [
        "already there: 4 runs, 2 versions",
        "Nothing was copied.",
    ]
    assert (rows_of(database), sorted(workplace.rglob("mlruns/artifacts/**/*"))) == (copied, files)
    assert rows_of(folder / "mlruns" / "mlflow.db") == before

    # It works as the original did.
    result = compare.compare_runs([run_id[:8] for run_id in ids]).results[0]
    with mlflow_store.opened():
        assert model_registry.find_champion("digits").number == 3
        child = run_queries.find_run(ids[1][:6])
        assert child.data.tags["mlflow.parentRunId"] == run_queries.find_run(parent).info.run_id
    assert result.run_id not in ids
    assert promotion.rollback("digits")[1].number == 1


def test_what_is_neither_a_run_nor_a_version_is_named(original, workplace, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(original[0] / "mlruns", other / "mlruns")
    with mlflow_store.opened_at(uri_of(other)):
        client = mlflow.MlflowClient()
        place = client.search_experiments()[0].experiment_id
        client.create_logged_model(place, "of_no_run")
        client.end_trace(client.start_trace("a trace", experiment_id=place).trace_id)
        mlflow.flush_trace_async_logging()
        client.register_prompt("a_prompt", "Name {{x}}.")
    kinds = "models without a run, traces, prompts"
    lines = list(store_copy.import_runs(str(other)))
    assert [line for line in lines if line.startswith("not carried: ")] == [
        f"not carried: {kinds}, which are in '{other / 'mlruns' / 'mlflow.db'}' only"
    ]
    assert not [line for line in store_copy.import_runs(str(other), [original[1]]) if "traces" in line]


@pytest.mark.long
def test_runs_survive_a_copy_to_a_folder_to_a_server_and_back(
    original, workplace, tmp_path_factory, store_template, monkeypatch
):
    folder, _, ids, _ = original
    with working_in(folder):
        done = CliRunner().invoke(cli, ["export", "--format", "runs", "--output", str(workplace / "all")])
        assert "copied: 4 runs, 2 versions, 2 aliases\n" in done.output
    expected = contents(uri_of(folder))
    database = tmp_path_factory.mktemp("server") / "server.db"
    shutil.copy(store_template, database)
    with served(database) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        for line in ("copied: 4 runs, 2 versions, 2 aliases", "Nothing was copied."):
            done = CliRunner().invoke(cli, ["import", "all"], catch_exceptions=False)
            assert line in done.output
        assert contents(server.uri) == expected
        with mlflow_store.opened():
            on_server = run_queries.find_run(ids[0][:8]).info.run_id
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert said(store_copy.import_runs(server.uri))[-1] == "copied: 4 runs, 2 versions, 2 aliases"
        assert contents(uri_of(workplace)) == expected
        with mlflow_store.opened():
            assert run_queries.find_run(on_server[:8]).info.run_id == run_queries.find_run(ids[0]).info.run_id
        with working_in(folder):
            assert list(store_copy.import_runs(server.uri))[-1] == "Nothing was copied."
    assert contents(uri_of(folder)) == expected


def test_an_interrupted_copy_is_continued(original, workplace, monkeypatch):
    folder, *_ = original
    right, left, interrupted = run_copy.Interruptible.__getattr__, 0, 0

    def fails(self, name):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return right(self, name)

    monkeypatch.setattr(run_copy.Interruptible, "__getattr__", fails)
    while True:
        left = 50 * (interrupted + 1)  # the files of the run that it stopped in go again
        try:
            last = list(store_copy.import_runs(str(folder)))[-1]
            break
        except KeyboardInterrupt:
            interrupted += 1
            assert "RUNNING" in "".join(rows_of(workplace / "mlruns" / "mlflow.db"))
    assert interrupted > 1
    assert last.startswith("copied: ")
    assert contents(uri_of(workplace)) == contents(uri_of(folder))


def test_failures_of_a_copy_are_told_and_retried(original, workplace, monkeypatch):
    folder, _, ids, _ = original
    right = run_copy.Transfer.copy_run

    def refuses(self, run):
        if run.info.run_id == ids[0]:
            raise OSError("no space")
        right(self, run)

    with monkeypatch.context() as patched:
        patched.setattr(run_copy.Transfer, "copy_run", refuses)
        done = CliRunner().invoke(cli, ["import", str(folder)])
    assert f"({ids[0][:8]}). Received: no space." in done.output
    assert "not carried: digits version 1, since its run or its model is not there" in done.output
    assert "Received: 1 failure" in str(done.exception)
    assert "copied: 1 run, 1 version" in said(store_copy.import_runs(str(folder)))[-1]


def test_an_alias_that_another_version_holds_is_moved_on_demand(original, workplace, small_cnn):
    folder, *_ = original
    here = train.train_model(small_cnn)
    version, _ = model_registry.register_run(here.run_id, name="digits")
    promotion.promote(version)
    assert said(store_copy.import_runs(str(folder)))[:2] == [
        "not moved: champion of digits stays version 1, and is version 3 by the copy (--aliases)",
        "kept of digits is version 2",
    ]
    with mlflow_store.opened():
        assert [v.number for v in model_registry.list_versions("digits")] == [3, 2, 1]
        assert model_registry.find_champion("digits").run_id == here.run_id
    done = CliRunner().invoke(cli, ["import", str(folder), "--aliases"], catch_exceptions=False)
    assert "champion of digits is version 3, no longer version 1\n" in done.output
    assert "already there: 4 runs, 2 versions\ncopied: 1 alias\n" in done.output
    assert list(store_copy.import_runs(str(folder), moves_aliases=True))[-1] == "Nothing was copied."
    before, now = promotion.rollback("digits")
    assert (before.number, now.number, now.run_id) == (3, 1, here.run_id)


def test_some_runs_are_copied_with_their_parents_and_children(original, workplace):
    folder, parent, ids, _ = original
    client = mlflow.MlflowClient(uri_of(folder))
    with pytest.raises(cnnlab.ArgumentError, match="Received: 'ffff', of no run"):
        list(store_copy.import_runs(str(folder), ["ffff"]))
    assert said(store_copy.import_runs(str(folder), [ids[0][:7]]))[-1] == "copied: 2 runs, 1 version, 1 alias"
    assert set(contents(uri_of(workplace))["runs"]) == {parent, ids[0]}
    assert said(store_copy.import_runs(str(folder), [parent]))[-1] == "copied: 1 run, 1 version, 1 alias"
    assert set(contents(uri_of(workplace))["runs"]) == {parent, *ids}

    # One that runs, and one whose copy somebody deleted.
    running = client.create_run(client.get_run(parent).info.experiment_id, run_name="at work")
    below = client.create_run(running.info.experiment_id, run_name="below", tags={run_copy.PARENT: running.info.run_id})
    client.set_terminated(below.info.run_id)
    with mlflow_store.opened():
        copy = run_queries.find_run(ids[0]).info.run_id
        mlflow.MlflowClient().delete_run(copy)
    try:
        assert said(store_copy.import_runs(str(folder)))[:3] == [
            f"left out: cnn on digits ({ids[0][:8]}), whose copy was deleted",
            f"left out: at work ({running.info.run_id[:8]}), which is RUNNING: repeat the command when it has ended",
            f"left out: below ({below.info.run_id[:8]}), as the run above it is",
        ]
        client.set_terminated(running.info.run_id, "FAILED")
        assert "copied: 2 runs" in list(store_copy.import_runs(str(folder)))
        assert client.get_run(running.info.run_id).info.end_time
    finally:
        for run in (running, below):
            client.delete_run(run.info.run_id)


def test_a_store_of_an_earlier_version_is_read_as_it_is(workplace):
    with tarfile.open(FIXTURES / "stored_runs.tar.xz") as archive:
        archive.extractall(workplace / "old", filter="data")
    [database] = (workplace / "old").rglob("mlflow.db")
    before = database.read_bytes()
    runs = sqlite3.connect(database).execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()[0]
    lines = list(store_copy.import_runs(str(database)))
    assert f"copied: {runs} runs, " in lines[-1] or f"copied: {runs} runs, " in lines[-2]
    assert database.read_bytes() == before
    assert list(store_copy.import_runs(str(database)))[-1].startswith(("Nothing", "not carried"))


def test_wrong_arguments_of_an_import_are_refused(store, workplace):
    (workplace / "full").mkdir()
    (workplace / "full" / "note.txt").write_text("mine")
    for arguments, expected in (
        (["import", "nowhere"], "Expected a store: a folder with mlflow.db"),
        (["import", "mlruns"], "Expected another store than the present one"),
        (
            ["export", "--format", "runs", "--output", "full"],
            "Expected a folder that is new, empty or an earlier export",
        ),
        (["export", "--format", "runs", "--output", "mlruns"], "Expected another folder than the store's own"),
        (["export", "--format", "runs", "--int8"], "Expected --int8 and --dataset with a model"),
        (["export", "--format", "keras", "a", "b"], "Expected one model. Received: 2"),
    ):
        done = CliRunner().invoke(cli, arguments)
        assert expected in str(done.exception)
        assert done.exception.exit_code == 2
