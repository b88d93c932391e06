"""Test servers, and disks, that answer in unusual ways: pytest tests/tracking/test_servers.py"""

import contextlib
import http.server
import logging
import shutil
import sqlite3
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

import cnnlab
from cnnlab.cli import main
from cnnlab.errors import masked
from cnnlab.tracking import mlflow_store as stores
from cnnlab.tracking import pagination, run_queries, ui_server
from cnnlab.tracking.recorder import Recorder
from tests.helpers.faulty_proxy import served

recorder = Recorder()

logging.getLogger("urllib3").setLevel(logging.ERROR)


class Noting(http.server.BaseHTTPRequestHandler):
    """Answers 200 to all, and keeps what it was asked."""

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def noting(context=None):
    """A server on loopback: its port, and the list of what it was asked."""
    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Noting,), {"asked": asked})) as server:
        server.handle_error = lambda *_: None  # a client that is refused hangs up
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def certificate(name):
    """`NAME.pem` with a key and a certificate that signs itself, in the working folder; skips without openssl."""
    made = shutil.which("openssl") and subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        ],
        check=False,
        capture_output=True,
    )
    if not made or made.returncode:
        pytest.skip("no openssl here")
    both = Path(f"{name}.pem").resolve()
    both.write_text(Path("key.pem").read_text() + Path("cert.pem").read_text())
    return str(both)


def test_certificates_of_both_sides(workplace, monkeypatch):
    ours, theirs = certificate("client"), certificate("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs)
    context.load_verify_locations(ours)
    context.verify_mode = ssl.CERT_REQUIRED
    with noting(context) as (port, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://localhost:{port}")
        with pytest.raises(cnnlab.LabError, match=r"certificate: MLFLOW_TRACKING_SERVER_CERT_PATH"):
            stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", theirs)
        with pytest.raises(cnnlab.LabError, match=r"name its file: MLFLOW_TRACKING_CLIENT_CERT_PATH"):
            stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", ours)
        stores.expect_usable_store()
        assert [path for path, _ in asked] == ["/health"]


def test_credentials_are_sent_to_the_server(monkeypatch):
    basic = "Basic YW5uOnNlY3JldA=="  # ann:secret
    monkeypatch.setattr(stores, "reached_before", lambda server: False)  # or it is not asked a second time
    with noting() as (port, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
        stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
        stores.expect_usable_store()
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        stores.expect_usable_store()
    assert [said for _, said in asked] == [basic, "Bearer a-token", basic]


def test_a_proxy_is_asked(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab.invalid:5000")
    with noting() as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        stores.expect_usable_store()
    assert [path for path, _ in asked] == ["http://lab.invalid:5000/health"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other.invalid:5000")  # which nobody has reached
    with pytest.raises(cnnlab.LabError, match=r"Correct HTTPS_PROXY and HTTP_PROXY"):
        stores.expect_usable_store()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:se@cret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ann:se/cret@host/lab", "postgresql://***@host/lab"),
        ("mysql://host/lab?user=ann&password=secret&ssl=1", "mysql://host/lab?user=ann&password=***&ssl=1"),
        ("http://host:5000/x@champion", "http://host:5000/x@champion"),
    ],
)
def test_passwords_are_masked(address, shown):
    assert masked(f"at {address}, and a@b") == f"at {shown}, and a@b"


def test_a_traceback_shows_no_password(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["cnnlab", "models", "--debug"])
    with pytest.raises(SystemExit):
        main.main()
    said = "".join(capsys.readouterr())
    assert "Traceback" in said
    assert "secret" not in said


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(address, monkeypatch, workplace):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(cnnlab.LabError, match="which is in memory"):
        stores.open_store()
    assert list(workplace.iterdir()) == []


def test_an_invalid_port_gives_one_sentence(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab.example.org:mlflow")
    with pytest.raises(cnnlab.LabError, match=r"Expected an MLflow server at http://lab\.example\.org:mlflow"):
        stores.open_store()


def many(connection, table, key, count, **changed):
    """Copies of the first row of a table, numbered in `key` and, of `changed`, in what has a `{}`."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    first = dict(zip(columns, connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone(), strict=True))
    for i in range(count):
        row = {**first, key: f"{i:032x}" if isinstance(first[key], str) else 1000 + i}
        row |= {name: value.format(i) if isinstance(value, str) else value(i) for name, value in changed.items()}
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", [row[c] for c in columns])


def test_more_than_a_thousand_experiments_and_runs(store, digits):
    """MLflow's pages hold a thousand; the newest experiment comes first, the run that is looked for last."""
    with (
        recorder.start(recorder.experiment_for(digits), "parent", params={}, tags={}) as parent,
        recorder.start(recorder.experiment_for(digits), "a", params={}, tags={}, parent_run_id=parent) as child,
    ):
        pass
    with contextlib.closing(sqlite3.connect("mlruns/mlflow.db")) as connection, connection:
        many(connection, "experiments", "experiment_id", 1100, name="other {}", creation_time=lambda i: 2**42 + i)
        many(connection, "runs", "run_uuid", 1100, name="other {}")
        tags = connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [child]).fetchall()
        numbers = [f"{i:032x}" for i in range(1100)]
        connection.executemany(
            "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", [(*tag, n) for n in numbers for tag in tags]
        )
    stores.open_store()
    assert run_queries.find_run(child[:12]).info.run_id == child
    experiment = store.get_run(child).info.experiment_id
    assert len(run_queries.children_of(parent, experiment)) == 1101
    assert run_queries.newest_run(experiment, dataset="none") is None
    assert f"/experiments/{experiment}/" in ui_server.ui_links("http://here")["runs"]


def test_more_than_a_thousand_experiments_and_runs_of_a_server(store_template, tmp_path_factory, digits, monkeypatch):
    """Where the ids of all experiments, and the pages, go over HTTP."""
    database = tmp_path_factory.mktemp("server") / "server.db"
    shutil.copy(store_template, database)
    with served(database) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        with stores.opened():
            experiment = recorder.experiment_for(digits)
            with (
                recorder.start(experiment, "parent", params={}, tags={}) as parent,
                recorder.start(experiment, "a", params={}, tags={}, parent_run_id=parent) as child,
            ):
                mlflow.log_metrics({"final_val_accuracy": 0.5, "test_accuracy": 0.5})
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            many(connection, "experiments", "experiment_id", 1100, name="other {}", creation_time=lambda i: 2**42 + i)
            many(connection, "runs", "run_uuid", 1100, name="other {}")
            tags = connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [child]).fetchall()
            connection.executemany(
                "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
                [(*tag, f"{i:032x}") for i in range(1100) for tag in tags],
            )
            newest = [str(1000 + i) for i in range(1100)]
        with stores.opened():
            assert set(newest) < set(pagination.all_experiments(mlflow.MlflowClient()))
            server.asked.clear()
            assert len(run_queries.children_of(parent, experiment)) == 1101
            assert sum(path.endswith("runs/search") for _, path in server.asked) == 2
            assert run_queries.find_run(child[:12]).info.run_id == child
            assert run_queries.best_run().info.run_id == run_queries.best_run("cnnlab-digits").info.run_id == child
            with recorder.start(recorder.experiment_for(digits), "b", params={}, tags={}) as run_id:
                pass
            assert run_queries.find_run(run_id).info.experiment_id == experiment
        assert f"/experiments/{experiment}/" in ui_server.ui_links(server.uri)["runs"]


def test_a_full_disk_is_said_before_the_work_and_read_all_the_same(store, digits, monkeypatch):
    with recorder.start(recorder.experiment_for(digits), "a", params={}, tags={}) as run_id:
        pass
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=4096))
    with pytest.raises(cnnlab.LabError, match="Expected space on the disk for the MLflow store"):
        stores.open_store()
    with stores.opened(writes=False):
        assert stores.is_read_only()
        assert run_queries.find_run(run_id).info.status == "FINISHED"
