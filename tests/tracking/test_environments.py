"""Test stores, servers and environments as people have them: pytest tests/tracking/test_environments.py"""

import contextlib
import http.server
import logging
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from filelock import FileLock
from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

import cnnlab
from cnnlab.classify import load_classifier
from cnnlab.cli import tables
from cnnlab.cli.library_errors import sentence
from cnnlab.errors import ServerUnavailable
from cnnlab.tracking import (
    epoch_metrics,
    model_registry,
    pagination,
    provenance,
    run_locks,
    run_logging,
    run_queries,
    server_unavailable,
    ui_server,
)
from cnnlab.tracking import mlflow_store as stores
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.tag_names import TAG, matches
from cnnlab.training import frozen_features
from cnnlab.tuning import trials
from cnnlab.tuning.trials import Place
from cnnlab.utils import ports, startup, user_cache

recorder = Recorder()

FIXTURES = Path(__file__).parent.parent / "fixtures"


def log_something(digits, text="a text"):
    """A finished run with an artifact; its id."""
    with (
        stores.opened(),
        recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}) as run_id,
    ):
        run_logging.log_results({}, {}, {"note.txt": text})
    return run_id


def text_of(run_id):
    with stores.opened(writes=False):
        return mlflow.artifacts.load_text(mlflow.get_run(run_id).info.artifact_uri + "/note.txt")


@pytest.mark.parametrize("name", ["my%20lab", "what?now", "#1", "a b'c", "ünï;x&y=z"])
def test_folders_whose_names_mean_something_in_an_address(name, store_template, workplace, monkeypatch, digits):
    folder = workplace / name
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(store_template, folder / "mlruns" / "mlflow.db")
    monkeypatch.chdir(folder)
    run_id = log_something(digits)
    assert (folder / "mlruns/artifacts" / run_id / "artifacts/note.txt").read_text() == "a text"
    assert text_of(run_id) == "a text"
    assert [path.name for path in workplace.iterdir()] == [name]


def test_a_renamed_store_finds_its_artifacts_and_writes_new_ones_beside_them(store, workplace, monkeypatch, digits):
    first = log_something(digits)
    mlflow.set_tracking_uri(None)
    (workplace / "mlruns").rename(workplace / "archive_2026")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///archive_2026/mlflow.db")
    assert text_of(first) == "a text"
    second = log_something(digits)
    assert (workplace / "archive_2026/artifacts" / second / "artifacts/note.txt").exists()
    assert not (workplace / "mlruns").exists()


def test_an_earlier_version_s_store_may_be_renamed_too(workplace, monkeypatch):
    with tarfile.open(FIXTURES / "stored_runs.tar.xz") as archive:
        archive.extractall(workplace, filter="data")
    (workplace / "mlruns").rename(workplace / "old")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///old/mlflow.db")
    with stores.opened(writes=False):
        champion = model_registry.find_champion(model_registry.the_name())
        assert run_queries.read_recipe(run_queries.find_run(champion.run_id)).model == "cnn"
    with sqlite3.connect("old/mlflow.db") as connection:
        [(places_left,)] = connection.execute("SELECT count(*) FROM runs WHERE artifact_uri LIKE 'file:%'")
    assert places_left == 0


SEEN_TWICE = """
import os, subprocess, sys
from pathlib import Path
import cnnlab
from cnnlab.tracking import mlflow_store, run_logging
from cnnlab.tracking.recorder import Recorder
here, there = map(Path, sys.argv[1:])
os.chdir(here)
digits = cnnlab.load_dataset("digits", limit=20)
recorder = Recorder()
with mlflow_store.opened(), recorder.start(recorder.experiment_for(digits), "live", params={}, tags={}) as run_id:
    subprocess.run([sys.executable, "-m", "cnnlab", "models"], cwd=there, check=True)
    run_logging.log_results({}, {}, {"note.txt": "a text"})
print(run_id)
"""


def test_one_store_under_two_paths_at_once(store, workplace):
    there = workplace / "there"
    there.mkdir()
    bound = (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "--mount", "sh", "-c", f"mount --bind {workplace} {there} && exec true"], check=False
        ).returncode
    )
    if bound:
        pytest.skip("no bind mounts here")
    command = f"mount --bind '{workplace}' '{there}' && exec \"$@\""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "sh", sys.executable, "-c", SEEN_TWICE, workplace, there],
        capture_output=True,
        text=True,
        check=True,
    )
    run_id = done.stdout.split()[-1]
    assert (workplace / "mlruns/artifacts" / run_id / "artifacts/note.txt").exists()
    assert store.get_run(run_id).info.status == "FINISHED"


def test_a_run_named_by_the_environment(store, digits, monkeypatch, capsys):
    finished = log_something(digits)
    monkeypatch.setenv("MLFLOW_RUN_ID", finished)
    other = log_something(digits)
    assert other != finished
    assert store.get_run(finished).info.status == "FINISHED"
    assert "it is not opened again" in capsys.readouterr().err
    assert os.environ["MLFLOW_RUN_ID"] == finished

    outer = store.create_run("0")  # as `mlflow run` makes it, in "Default"
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    inner = run_queries.find_run(log_something(digits))
    assert inner.info.experiment_id == "0"
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert store.get_run(outer.info.run_id).info.status == "RUNNING"


def test_the_store_of_mlflow_run_is_named_for_the_shell_afterwards(store, monkeypatch, capsys, workplace):
    (workplace / "mlflow.db").touch()
    with pytest.raises(
        cnnlab.ArgumentError, match=r"MLflow's own is here too: MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
    ):
        run_queries.find_run("0123")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@lab.example.org")
    tables.print_next_step("a")
    monkeypatch.setenv("MLFLOW_RUN_ID", "b")
    tables.print_next_step("a")
    plain, named = capsys.readouterr().out.splitlines()
    assert plain.endswith("with: cnnlab ui")
    assert named.endswith("with: MLFLOW_TRACKING_URI='http://***@lab.example.org' cnnlab ui")


def test_the_experiment_that_mlflow_s_variable_names(store, digits, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run = run_queries.find_run(log_something(digits))
    experiment = store.get_experiment(run.info.experiment_id)
    assert experiment.name == "mine"
    assert experiment.artifact_location == "mlflow-artifacts:/"


def test_inside_a_run_of_the_user_s_everything_is_left_as_it_was(
    workplace, monkeypatch, store_template, digits, small_cnn
):
    shutil.copy(store_template, workplace / "theirs.db")
    mlflow.set_tracking_uri(f"sqlite:///{workplace / 'theirs.db'}")
    mlflow.set_experiment("their work")
    mlflow.keras.autolog(log_datasets=False, silent=True)
    before = dict(AUTOLOGGING_INTEGRATIONS["keras"])
    try:
        with mlflow.start_run() as outer:
            result = cnnlab.fit_and_evaluate(cnnlab.build_model(small_cnn, digits), digits, small_cnn)
            assert mlflow.active_run().info.run_id == outer.info.run_id
            mlflow.log_metric("theirs", 1)
        assert mlflow.get_tracking_uri() == f"sqlite:///{workplace / 'theirs.db'}"
        assert AUTOLOGGING_INTEGRATIONS["keras"] == before
        with mlflow.start_run() as later:
            assert later.info.experiment_id == outer.info.experiment_id
        inner = mlflow.get_run(result.run_id)
        assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
        assert inner.info.experiment_id == outer.info.experiment_id
        assert mlflow.get_run(outer.info.run_id).info.status == "FINISHED"
        assert load_classifier(result.run_id[:8]).class_names == digits.class_names
        assert not (workplace / "mlruns/mlflow.db").exists()
    finally:
        mlflow.keras.autolog(disable=True, silent=True)
        mlflow.tracking.fluent._active_experiment_id = None
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        mlflow.set_tracking_uri(None)


def test_a_run_of_another_container_is_not_declared_dead(store, digits):
    elsewhere = {"process": f"{os.uname().nodename}/4194304-1", "processes": "the same boot/pid:[1]"}
    run = store.create_run(recorder.experiment_for(digits), tags={TAG + key: v for key, v in elsewhere.items()})
    stores.open_store()
    assert store.get_run(run.info.run_id).info.status == "RUNNING"
    # With a lock beside the store it is known wherever its process is.
    lock = FileLock(run_locks.lock_file(stores.local_folder(mlflow.get_tracking_uri()), run.info.run_id))
    Path(lock.lock_file).parent.mkdir(exist_ok=True)
    with lock:
        code = "from cnnlab.tracking.mlflow_store import open_store; open_store()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert store.get_run(run.info.run_id).info.status == "RUNNING"
    Path(lock.lock_file).touch()
    stores.open_store()
    assert store.get_run(run.info.run_id).info.status == "KILLED"


def test_first_runs_at_once_may_meet_at_the_data_set(store, digits, monkeypatch):
    real, met = mlflow.log_input, []

    def meets(*args, **kwargs):
        if len(met) < 3:
            met.append(True)
            raise mlflow.MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name")
        return real(*args, **kwargs)

    monkeypatch.setattr(mlflow, "log_input", meets)
    with (
        stores.opened(),
        recorder.start(recorder.experiment_for(digits), "a", params={}, tags={}) as run_id,
    ):
        run_logging.log_dataset(digits)
    assert [i.dataset.name for i in store.get_run(run_id).inputs.dataset_inputs] == [digits.name]


def test_a_full_disk_leaves_the_cache_out(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    given = keras.Input((4, 4, 3), dtype="uint8")
    front = keras.Model(given, keras.layers.Flatten()(given))
    images = np.arange(2 * 48, dtype="uint8").reshape(2, 4, 4, 3)
    arguments = (front, [images], np.array([0, 1]), np.array([b"a", b"b"]))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert np.array_equal(frozen_features.load_or_compute(*arguments), images.reshape(2, -1))
    assert "cannot be stored" in capsys.readouterr().err
    assert list(user_cache.cache_folder("features").glob("*.npy")) == []
    monkeypatch.setattr(frozen_features.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert frozen_features.load_or_compute(*arguments) is None
    (user_cache.cache_folder("features") / "unfinished-x").mkdir()
    (user_cache.cache_folder("features") / "unfinished-x" / "part.npy").write_bytes(b"12345")
    assert user_cache.clear() == 5


def test_a_user_without_a_home(monkeypatch, workplace, capsys):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("CNNLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert user_cache.cache_folder("features").parts[-1] == "features"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(workplace))
    monkeypatch.setenv("HOME", "")
    startup.expect_home()
    assert os.environ["HOME"] == str(workplace / f"cnnlab-{os.getuid()}")
    assert "no home folder" in capsys.readouterr().err


class Refusing(http.server.BaseHTTPRequestHandler):
    status = 403

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else self.status)
        self.end_headers()
        self.wfile.write(b"no")

    do_POST = do_GET

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def answering(handler, context=None):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_is_one_sentence(status, monkeypatch):
    with answering(type("Handler", (Refusing,), {"status": status})) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
        with pytest.raises(mlflow.MlflowException) as caught, stores.opened(writes=False):
            model_registry.list_versions()
    said = sentence(caught.value)
    assert said.startswith("Expected the store to permit this.")
    assert "MLFLOW_TRACKING_USERNAME" in said
    assert "secret" not in said


def test_a_servers_own_certificate_works_in_mlflows_three_ways(workplace, monkeypatch):
    made = shutil.which("openssl") and subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=False,
        capture_output=True,
    )
    if not made or made.returncode:
        pytest.skip("no openssl here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("cert.pem", "key.pem")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with answering(Refusing, context) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://localhost:{port}")
        with pytest.raises(cnnlab.LabError, match="certificate"):
            stores.expect_usable_store()
        for variable, value in (("MLFLOW_TRACKING_SERVER_CERT_PATH", "cert.pem"), ("REQUESTS_CA_BUNDLE", "cert.pem")):
            with monkeypatch.context() as patch:
                patch.setenv(variable, str(workplace / value))
                stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        stores.expect_usable_store()


def test_passwords_are_not_printed(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(cnnlab.LabError, match=r"http://\*\*\*@127.0.0.1:9") as caught:
        stores.open_store()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["postgresql://ann:secret@localhost/lab", "mysql://ann:secret@localhost/lab"])
def test_a_database_without_its_driver(address, monkeypatch):
    for driver in ("psycopg", "psycopg2", "MySQLdb"):
        monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(cnnlab.LabError, match=r"pip install '(psycopg|pymysql)") as caught:
        stores.open_store()
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer(monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://ann:secret@127.0.0.1:9/lab")
    started = time.monotonic()
    with pytest.raises(cnnlab.LabError, match="Expected an MLflow store at postgresql") as caught:
        stores.open_store()
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 15


def test_an_address_without_http(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "lab.example.org:5000")
    with pytest.raises(cnnlab.LabError, match=r"Did you mean http://lab.example.org:5000"):
        stores.open_store()


def test_a_database_of_a_newer_mlflow(store_template, workplace):
    (workplace / "mlruns").mkdir()
    shutil.copy(store_template, workplace / "mlruns" / "mlflow.db")
    with sqlite3.connect("mlruns/mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(cnnlab.LabError, match="of a newer MLflow") as caught:
        stores.open_store()
    assert "\n" not in str(caught.value)
    with sqlite3.connect("mlruns/mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(cnnlab.LabError, match=r"of an older MLflow.*cnnlab doctor --fix"):
        stores.open_store()


def test_a_store_that_may_not_be_written_is_read(store, digits, workplace, monkeypatch):
    run_id = log_something(digits)
    mlflow.set_tracking_uri(None)

    def state():
        return {path: path.stat().st_mtime_ns for path in sorted(workplace.rglob("*"))}

    before = state()
    monkeypatch.setattr(stores, "_may_write", lambda _: False)
    assert text_of(run_id) == "a text"
    with stores.opened(writes=False):
        assert stores.is_read_only()
        assert model_registry.list_versions() == []
        assert run_queries.find_run(run_id[:8]).info.run_id == run_id
    assert state() == before


def test_every_page_is_read():
    class Page(list):
        token = None

    def search(page_token=None):
        start = int(page_token or 0)
        page = Page(range(start, min(start + 1000, 2500)))
        page.token = str(start + 1000) if start + 1000 < 2500 else None
        return page

    assert list(pagination.paginate(search)) == list(range(2500))


@pytest.mark.parametrize("name", ["it's", 'a "b"', 'it\'s "b"', "100 %"])
def test_conditions_hold_any_name(name, store):
    experiment_id = store.create_experiment("names")
    run = store.create_run(experiment_id, tags={"name": name})
    store.create_run(experiment_id, tags={"name": "another"})
    assert [r.info.run_id for r in store.search_runs([experiment_id], matches("tags.name", name))] == [run.info.run_id]


@pytest.mark.parametrize("name", ["a/b:c", "cnnlab-it's", "猫"])
def test_registered_names_are_legal(name, store):
    legal = model_registry.legal_name(name)
    store.create_registered_model(legal)
    assert model_registry.list_versions(legal) == []


def test_metrics_that_a_server_missed_are_sent_again(store, digits, capsys):
    with (
        stores.opened(),
        recorder.start(recorder.experiment_for(digits), "a", params={}, tags={}) as run_id,
    ):
        mlflow.log_metric("loss", 3.0, step=0)
        epoch_metrics.complete_history(run_id, {"loss": [3.0, 2.0, 1.0], "accuracy": [0.1, 0.2, 0.3]})
    assert sorted((m.step, m.value) for m in store.get_metric_history(run_id, "loss")) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert len(store.get_metric_history(run_id, "accuracy")) == 3
    assert "missed 3 of the epochs" in capsys.readouterr().err


def test_results_that_cannot_be_delivered_stay_on_the_disk(store, workplace):
    def save(folder):
        run_logging.write_results(folder, {}, {"note.txt": "a text"}, metrics={"test_accuracy": 0.5})

    with (
        pytest.raises(cnnlab.LabError, match=r"all results are in '.*undelivered/abc'"),
        server_unavailable.results_kept("abc", save),
    ):
        raise mlflow.MlflowException("API request failed")
    folder = workplace / "mlruns/undelivered/abc"
    assert {path.name for path in folder.iterdir()} == {"note.txt", "metrics.json"}


def test_a_folder_that_a_group_shares(digits, workplace):
    before = os.umask(0o002)
    try:
        run_id = log_something(digits)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (workplace / "mlruns").rglob("*")}
    assert modes["mlflow.db"] == 0o664
    assert modes["mlflow.db.lock"] == 0o664
    assert modes[run_id] & 0o070 == 0o070
    assert modes["note.txt"] & 0o060 == 0o060
    assert (workplace / "mlruns/artifacts" / run_id / "artifacts").stat().st_mode & 0o070 == 0o070


def test_keras_with_other_settings_is_refused(digits, small_cnn):
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(cnnlab.LabError, match="channels_last"):
            cnnlab.build_model(small_cnn, digits)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_hosts_of_ipv6():
    assert ports.address("::1", 5000) == "http://[::1]:5000"
    try:
        assert ports.choose_port("::1", None, 0) > 0
    except cnnlab.LabError:
        pytest.skip("no IPv6 here")


def test_errors_of_the_system_are_sentences():
    for error, said in (
        (OSError(28, "No space left on device", "mlruns/x"), "Expected space on the disk for 'mlruns/x'"),
        (sqlite3.OperationalError("database or disk is full"), "Expected space on the disk"),
        (ModuleNotFoundError("No module named 'psycopg'", name="psycopg"), "pip install psycopg"),
        (mlflow.MlflowException("RESOURCE_DOES_NOT_EXIST: no such run"), "Expected the store to do this"),
    ):
        assert said in sentence(error)
    assert sentence(ZeroDivisionError()) is None


def test_a_reader_without_write_access_gets_the_link(store, digits, monkeypatch):
    log_something(digits)

    def refused(*_):
        raise mlflow.MlflowException("PERMISSION_DENIED: 403")

    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", refused)
    assert ui_server.ui_links("http://here")["runs"].endswith("/runs?workflowType=machine_learning")


def test_the_ui_s_own_wait_goes_past_a_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(Refusing) as port:
        ui_server._wait_until_up(type("Server", (), {"poll": lambda self: None})(), f"http://127.0.0.1:{port}")


def test_the_names_that_the_ui_answers_to():
    names = ports.names_of("0.0.0.0", 5000)
    assert {os.uname().nodename, f"{os.uname().nodename}:5000", "localhost:5000", "[::1]:5000"} <= set(names)
    assert set(ports.names_of("127.0.0.1", 1)) == {
        *("127.0.0.1", "127.0.0.1:1", "localhost", "localhost:1", "[::1]", "[::1]:1"),
    }


def test_without_git_no_tags_of_the_code_are_recorded(monkeypatch, workplace):
    monkeypatch.setenv("PATH", str(workplace))
    assert provenance._code_tags.__wrapped__() == {}


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailable("away"),
        mlflow.MlflowException("API request to http://x/api/2.0/mlflow/runs/search failed with exception HTTPConn..."),
        mlflow.MlflowException("API request to endpoint /x failed with error code 503 != 200."),
    ],
)
def test_a_trial_is_repeated_when_the_store_is_back(error, store, digits, monkeypatch):
    calls = []

    def scored(*_):
        calls.append(True)
        if len(calls) < 2:
            raise error
        return 0.5

    monkeypatch.setattr(Place, "scored_run", scored)
    place = Place("0", "parent", digits, {})
    with trials.data_loaded(place):
        assert trials.train_scored(place.address(None), cnnlab.Recipe("cnn"), "trial", "1", "trial 1") == 0.5
    assert len(calls) == 2


def test_an_error_s_traceback_is_shown_when_asked_for(workplace):
    command = [sys.executable, "-m", "cnnlab", "models"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "lab.example.org:5000"}
    plain, debug = (
        subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=False)
        for more in ([], ["--debug"])
    )
    assert plain.returncode == debug.returncode == 1
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr
