"""Test that each fault of a store is found and repaired: pytest tests/tracking/maintenance/test_doctor.py"""

import contextlib
import os
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path

import mlflow
import pytest
from alembic import command
from filelock import FileLock
from mlflow.store.db import utils

from cnnlab import doctor
from cnnlab.tracking import mlflow_store as stores
from cnnlab.tracking import run_locks, run_logging
from cnnlab.tracking.maintenance import deleted_runs as garbage_of
from cnnlab.tracking.maintenance import sqlite_files, store_checks
from cnnlab.tracking.offline import spool
from cnnlab.tracking.recorder import Recorder
from cnnlab.tuning import search_states
from cnnlab.utils import temporary_folders, user_cache

recorder = Recorder()

HOME = Path("mlruns")


@pytest.fixture
def lab(store, store_template, digits, monkeypatch, tmp_path_factory):
    """A store with a finished run, and a folder for temporary files of its own; gives the client and the run's id."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
    # A new database is made in seconds, and copied in milliseconds.
    monkeypatch.setattr(sqlite_files, "make_database", lambda path: shutil.copy(store_template, path))
    return store, finished(digits)


def finished(digits, text="a text"):
    with (
        stores.opened(),
        recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}) as run_id,
    ):
        run_logging.log_results({"x": 1}, {}, {"note.txt": text})
    return run_id


def found(fix=False, **options):
    return [(examined.finding.what, examined.repaired) for examined in doctor.examine(fix, **options)]


def expect(*whats, remains=()):
    """What a look must find, and then a repair put right, so that the next look finds only `remains`."""
    before = snapshot()
    seen = found()
    assert len(seen) == len(whats), seen
    for (what, _), expected in zip(seen, whats, strict=True):
        assert expected in what
    assert snapshot() == before  # looking changes nothing
    done = found(fix=True)
    assert all(repaired for what, repaired in done if not any(text in what for text in remains)), done
    left = found()
    assert len(left) == len(remains), left
    return done


def snapshot():
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(HOME / "mlflow.db")) as connection:
        dumped = list(connection.iterdump())
        return sorted(map(str, HOME.rglob("*"))), dumped
    return sorted(map(str, HOME.rglob("*"))), None


def test_a_healthy_store_and_a_missing_store_have_no_findings(lab, workplace, monkeypatch):
    assert found() == found(fix=True) == []
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    assert found() == found(fix=True) == []
    assert not HOME.exists()


def test_a_run_of_a_killed_process_is_closed(lab, digits):
    client, _ = lab
    run = client.create_run(recorder.experiment_for(digits), tags={"cnnlab.process": "elsewhere/1-1"})
    run_id = run.info.run_id
    assert found() == []  # another machine's, for all that can be known
    (HOME / "running" / f"{run_id}.lock").touch()  # which the process of a run holds as long as it lives
    expect("1 run left RUNNING")
    assert client.get_run(run_id).info.status == "KILLED"
    [backup] = (HOME / "backups").iterdir()
    with contextlib.closing(sqlite3.connect(backup)) as connection:
        assert dict(connection.execute("SELECT run_uuid, status FROM runs"))[run_id] == "RUNNING"


def test_what_belongs_to_a_live_run_is_left_alone(lab, digits):
    with (
        stores.opened(),
        recorder.start(recorder.experiment_for(digits), "live", params={}, tags={}) as run_id,
    ):
        (HOME / "checkpoints").mkdir()
        (HOME / "checkpoints" / f"{run_id}.npz").touch()
        (HOME / "artifacts" / run_id / "artifacts").mkdir(parents=True)
        assert found() == found(fix=True) == []
        assert (HOME / "running" / f"{run_id}.lock").exists()
        break_pages(HOME / "mlflow.db")
        [(what, repaired), (skipped, _)] = found(fix=True)
        assert "broken" in what
        assert not repaired
        assert "were not looked at" in skipped
        assert run_id[:8] in next(doctor.examine(fix=True)).outcome
        shutil.copy(HOME / "kept.db", HOME / "mlflow.db")


def rows(what):
    """Rows of the database as another process would see them: MLflow, in this one, has the file of before open."""
    with contextlib.closing(sqlite3.connect(HOME / "mlflow.db")) as connection:
        return connection.execute(what).fetchall()


def break_pages(whole):
    """Write over the page of the runs' params, and keep a whole copy as kept.db."""
    shutil.copy(whole, whole.with_name("kept.db"))
    with contextlib.closing(sqlite3.connect(whole)) as connection:
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'params'")
        [(size,)] = connection.execute("PRAGMA page_size")
    with whole.open("r+b") as opened:
        opened.seek((page - 1) * size)
        opened.write(b"\xff" * size)


def cut_off(whole):
    os.truncate(whole, os.path.getsize(whole) * 3 // 4 // 4096 * 4096)


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="the program sqlite3 is not installed")
def test_of_a_broken_database_the_rows_are_saved_that_sqlite3_can_read(lab):
    _, run_id = lab
    break_pages(HOME / "mlflow.db")
    (HOME / "kept.db").unlink()
    expect("the database is broken", "were not looked at")
    assert [path.suffixes for path in (HOME / "backups").iterdir()] == [[".broken", ".db"]]
    assert rows("SELECT run_uuid, status FROM runs") == [(run_id, "FINISHED")]
    assert rows("SELECT key, value FROM metrics") == [("x", 1.0)]


@pytest.mark.parametrize("damage", [break_pages, cut_off])
def test_without_sqlite3_the_last_backup_takes_the_place_of_a_broken_database(lab, damage, monkeypatch):
    _, run_id = lab
    sqlite_files.backup((HOME / "mlflow.db").resolve())
    damage(HOME / "mlflow.db")
    (HOME / "kept.db").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", "")
    expect("the database is broken", "were not looked at")
    assert [path.suffixes for path in sorted((HOME / "backups").iterdir())] == [[".db"], [".broken", ".db"]]
    assert rows("SELECT run_uuid, status FROM runs") == [(run_id, "FINISHED")]
    assert rows("SELECT key, value FROM metrics") == [("x", 1.0)]


@pytest.mark.parametrize("content", [b"", b"this is no database" * 100])
def test_no_database_at_all_is_replaced_and_artifacts_are_kept(lab, content):
    _, run_id = lab
    good = (HOME / "mlflow.db").read_bytes()
    (HOME / "mlflow.db").write_bytes(content)
    done = expect("the database is broken", "were not looked at")
    assert "artifacts of 1 run that the database does not know" in done[-1][0]
    assert (HOME / "lost/artifacts" / run_id / "artifacts/note.txt").read_text() == "a text"
    (HOME / "mlflow.db").write_bytes(good)  # from somebody's own backup
    expect("1 folder in", "1 finished run without artifacts")
    assert (HOME / "artifacts" / run_id / "artifacts/note.txt").read_text() == "a text"


def test_the_last_backup_takes_the_place_of_what_cannot_be_read(lab):
    _, run_id = lab
    sqlite_files.backup((HOME / "mlflow.db").resolve())
    (HOME / "mlflow.db").write_bytes(b"no database")
    [first, *_] = doctor.examine(fix=True)
    assert "without what was written after it" in first.outcome
    assert rows("SELECT run_uuid FROM runs") == [(run_id,)]


def test_a_half_migrated_database(lab):
    client, run_id = lab
    with contextlib.closing(sqlite3.connect(HOME / "mlflow.db")) as connection, connection:
        connection.execute("ALTER TABLE tags RENAME TO _alembic_tmp_tags")  # killed before the last step of a migration
        connection.execute("CREATE TABLE _alembic_tmp_params AS SELECT * FROM params")  # and before the one before
        connection.execute("CREATE TABLE mine AS SELECT 1")
    expect("half-migrated", "were not looked at")
    assert rows("SELECT * FROM mine") == [(1,)]
    assert client.get_run(run_id).data.tags["mlflow.runName"] == "a run"
    with contextlib.closing(sqlite3.connect(HOME / "mlflow.db")) as connection, connection:
        connection.execute("DROP TABLE webhooks")  # which no migration makes again
    expect("half-migrated: without the tables webhooks", "were not looked at")
    assert rows("SELECT count(*) FROM webhooks") == [(0,)]
    assert rows("SELECT key, value FROM metrics") == [("x", 1.0)]
    assert len(list((HOME / "backups").iterdir())) == 2


def test_files_without_rows_and_rows_without_files(lab, digits):
    client, run_id = lab
    unknown = HOME / "artifacts" / ("b" * 32)
    (unknown / "artifacts").mkdir(parents=True)
    model = HOME / "artifacts/models" / f"m-{'c' * 32}"
    (model / "artifacts").mkdir(parents=True)
    kept = HOME / "artifacts" / run_id
    shutil.move(kept, "away")
    expect("artifacts of 1 run", "artifacts of 1 model", "1 finished run without artifacts")
    assert (HOME / "lost/artifacts" / unknown.name).is_dir()
    assert (HOME / "lost/artifacts/models" / model.name).is_dir()
    assert client.get_run(run_id).data.tags["cnnlab.lost"] == "all artifacts"
    shutil.move("away", kept)
    expect("said to be without artifacts")
    assert "cnnlab.lost" not in client.get_run(run_id).data.tags


def test_leftover_files(lab, monkeypatch):
    (HOME / "fresh-1").mkdir()
    features = user_cache.cache_folder("features")
    (features / "unfinished-1").mkdir(parents=True)
    (features / "key.json").write_text("{}")
    for name in ("cnnlab-files-1", "cnnlab-files-2", "somebody-s"):
        Path(tempfile.gettempdir(), name).mkdir()
        os.utime(Path(tempfile.gettempdir(), name), (1, 1))
    with temporary_folders._locked(Path(tempfile.gettempdir(), "cnnlab-files-2")):
        (features / "key.lock").touch()
        with FileLock(features / "key.lock"):
            assert not [what for what, _ in found() if "in the cache" in what]
        expect("1 unfinished database", "2 unfinished or incomplete files in the cache", "1 temporary folder")
    assert {path.name for path in Path(tempfile.gettempdir()).iterdir()} == {"cnnlab-files-2", "somebody-s"}


def test_undelivered_results_are_said_and_kept(lab, store_template, monkeypatch):
    (HOME / "undelivered" / ("f" * 32)).mkdir(parents=True)
    with spool.new_entry("http://server:5000") as entry:
        shutil.copy(store_template, entry.database)
        with stores.opened_at(entry.uri):
            mlflow.MlflowClient().create_run("0", run_name="far")
        assert len(found()) == 1  # what is being recorded is nobody's business
    for examined in doctor.examine(fix=True):
        assert examined.is_left
    outbox_, kept = doctor.examine()
    assert (outbox_.finding.what[:5], outbox_.finding.remedy) == ("1 run", "deliver with 'cnnlab sync'")
    assert outbox_.finding.items[0].endswith("far, for http://server:5000")
    assert kept.finding.items == ("f" * 32,)
    entry.database.write_bytes(b"no database")
    assert [repaired for what, repaired in found(fix=True) if "broken" in what] == [True]
    assert len(list((entry.folder / "backups").iterdir())) == 1


def test_a_server_that_is_away_does_not_hide_what_is_here(lab, monkeypatch):
    (HOME / "undelivered" / ("f" * 32)).mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    away, kept = found()
    assert "Expected an MLflow server at http://127.0.0.1:9" in away[0]
    assert "results of 1 run" in kept[0]


def log_model(client, run_id):
    """A logged model of a run with a file, its id."""
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", source_run_id=run_id)
    folder = HOME / "artifacts/models" / model.model_id / "artifacts"
    folder.mkdir(parents=True)
    (folder / "model.keras").write_bytes(b"12345")
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id


def test_gc_frees_what_deleted_runs_hold_but_for_a_registered_version(lab, digits):
    client, needed = lab
    freed, alive = finished(digits, "123"), finished(digits)
    models = {run_id: log_model(client, run_id) for run_id in (needed, freed, alive)}
    client.create_registered_model("digits")
    client.create_model_version("digits", f"models:/{models[needed]}", run_id=needed)
    for run_id in (needed, freed):
        client.delete_run(run_id)
    before = snapshot()
    garbage = garbage_of.collect()
    assert snapshot() == before
    assert (garbage.runs, garbage.models, garbage.experiments) == ([freed], [models[freed]], [])
    assert garbage.size == 3 + 5
    assert garbage.kept == {needed: "digits version 1 needs it"}
    garbage_of.collect(free=True)
    assert {path.name for path in (HOME / "artifacts").iterdir()} == {"models", needed, alive}
    assert {path.name for path in (HOME / "artifacts/models").iterdir()} == {models[needed], models[alive]}
    assert {row[0] for row in rows("SELECT run_uuid FROM runs")} == {needed, alive}
    assert garbage_of.collect(free=True).runs == []


def test_gc_frees_a_deleted_experiment_and_the_model_of_a_run_that_is_gone(lab):
    client, run_id = lab
    model_id = log_model(client, run_id)
    with contextlib.closing(sqlite3.connect(HOME / "mlflow.db")) as connection, connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):  # as `mlflow gc` does
            connection.execute(f"DELETE FROM {table}")
    expect(
        "artifacts of 1 run that", "1 model of runs that are gone", remains=["0 deleted runs and 1 deleted model hold"]
    )
    client.delete_experiment(client.get_experiment_by_name("cnnlab-digits").experiment_id)
    garbage = garbage_of.collect(free=True)
    assert (garbage.runs, garbage.models, len(garbage.experiments)) == ([], [model_id], 1)
    assert client.get_experiment_by_name("cnnlab-digits") is None


def test_a_model_that_a_kill_left_half_written(lab, digits):
    client, _ = lab
    whole, half, live = finished(digits), finished(digits), finished(digits)
    place = client.get_run(half).info.experiment_id
    kept = log_model(client, whole)
    for name in ("recipe.json", "predictions.npz"):
        client.log_text(whole, "", name)
    left = [client.create_logged_model(place, "model", source_run_id=run_id) for run_id in (whole, half)]
    client.create_logged_model(place, "model", source_run_id=live)
    client.update_run(live, "RUNNING")  # still writing, for all that can be known
    expect("2 models half-written", remains=["0 deleted runs and 2 deleted models hold"])
    assert set(garbage_of.collect(free=True).models) == {model.model_id for model in left}
    assert client.get_logged_model(kept).model_id == kept


def test_damaged_states_of_searches(lab):
    for name, files in {
        "whole": ["search.json"],
        "torn": ["search.json", "oracle.json"],
        "live": ["oracle.json"],
    }.items():
        (HOME / "searches" / name / "trial_0").mkdir(parents=True)
        for file in files:
            (HOME / "searches" / name / file).write_text("{}")
    (HOME / "searches/torn/trial_0/trial.json").write_text('{"trial_id": ')
    (HOME / "searches/whole/x.part").touch()
    with FileLock(HOME / "searches/live.lock"):
        options = {"further": [search_states.state_findings]}
        assert [what for what, _ in found(**options)] == [
            "1 search whose state is damaged",
            "1 half-written file of a search",
        ]
        found(fix=True, **options)
        assert found(**options) == []
    assert sorted(path.name for path in (HOME / "searches").iterdir()) == ["live", "live.lock", "whole"]
    assert (HOME / "lost/searches/torn/trial_0/trial.json").exists()
    assert [what for what, _ in found(**options)] == ["1 search whose state is damaged"]  # live has no search.json


def test_a_store_of_an_earlier_version(workplace, monkeypatch):
    with tarfile.open(Path(__file__).parents[2] / "fixtures/stored_runs.tar.xz") as archive:
        archive.extractall(workplace, filter="data")
    monkeypatch.setattr(tempfile, "tempdir", str(workplace))
    assert found() == []
    stores.open_store()
    assert rows("SELECT artifact_location FROM experiments WHERE name = 'cnnlab-digits'") == [("mlflow-artifacts:/",)]


def test_databases_of_other_mlflows(lab):
    client, run_id = lab
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{(HOME / 'mlflow.db').resolve()}")
    config = utils._get_alembic_config(str(engine.url))
    with engine.begin() as config.attributes["connection"]:
        command.downgrade(config, "-2")
    engine.dispose()
    expect("one of an older MLflow", "were not looked at")
    assert client.get_run(run_id).data.metrics == {"x": 1}
    with contextlib.closing(sqlite3.connect(HOME / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    [newer, _] = doctor.examine(fix=True)
    assert "one of a newer MLflow" in newer.finding.what
    assert newer.is_left


def test_a_server_s_runs_of_this_machine(lab, digits):
    client, _ = lab
    uri = stores.address()
    run = client.create_run(recorder.experiment_for(digits), tags=gone_here())
    tags = {f"cnnlab.{key}": value for key, value in run_locks.process_tags().items()}
    live = client.create_run(run.info.experiment_id, tags=tags)
    [note, finding] = store_checks.server_findings(uri)
    assert not note.is_fault
    assert finding.items == (f"{run.info.run_id[:8]} {run.info.run_name}",)
    finding.fix()
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    assert client.get_run(live.info.run_id).info.status == "RUNNING"


def gone_here():
    """The tags of a run of a process of this machine that has ended."""
    tags = {f"cnnlab.{key}": value for key, value in run_locks.process_tags().items()}
    return {**tags, "cnnlab.process": tags["cnnlab.process"].rpartition("/")[0] + "/1-1"}
