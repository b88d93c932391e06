"""Test the whole way on PostgreSQL, with users and TLS: pytest -m server -n 0 tests/test_on_server.py"""

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from cnnlab.cli.main import cli
from cnnlab.tracking import mlflow_store, run_queries
from cnnlab.utils.ports import choose_port
from tests.helpers.store_contents import contents

pytestmark = pytest.mark.server
pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'cnnlab[server]'")
pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed: pip install 'cnnlab[server]'")

PROGRAMS = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ["PATH"]]
POSTGRES = shutil.which("postgres", path=os.pathsep.join(PROGRAMS))
ADMIN, PASSWORD = "admin", "a long pass/word@home"
SMALL = ["--dataset", "digits", "--limit", "150", "--epochs", "1", "--filters", "8,8"]


@contextlib.contextmanager
def process(*command, until, end=signal.SIGTERM, **options):
    """A process that is up, and is ended by its id."""
    with open(f"{Path(command[0]).name}.log", "wb") as log:
        started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + 120
        while not until():
            assert started.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, end)
        started.wait(60)


@pytest.fixture
def postgres(workplace):
    """The address of an empty database of a PostgreSQL of its own."""
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    bin, port = Path(POSTGRES).resolve().parent, choose_port("127.0.0.1", None, 0)
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # that such a user may look into
        if user:
            shutil.chown(folder, "postgres")
        secret = Path(folder, "password")
        secret.write_text("sec/ret")
        secret.chmod(0o644)

        def run(program, *arguments):
            environment = {**os.environ, "PGPASSWORD": "sec/ret"}
            command = [*user, bin / program, *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment)

        def until():
            ready = [bin / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            return subprocess.run(ready, capture_output=True, check=False).returncode == 0

        run("initdb", "-D", f"{folder}/data", "-A", "scram-sha-256", "-U", "lab", f"--pwfile={secret}", "--no-sync")
        settings = ["-D", f"{folder}/data", "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-F"]
        with process(*user, bin / "postgres", *settings, until=until, cwd=folder, end=signal.SIGINT):
            for name in ("lab", "users"):
                run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "lab", name)
            yield f"postgresql+psycopg://lab:sec%2Fret@127.0.0.1:{port}/"


@pytest.fixture
def server(postgres, workplace, monkeypatch):
    """The address of MLflow's server on it, which speaks TLS and asks for a password."""
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"]
    openssl += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    if not shutil.which("openssl"):
        pytest.skip("no openssl here")
    subprocess.run(openssl, check=True, capture_output=True)
    users = workplace / "auth.ini"
    settings = {
        "default_permission": "READ",
        "database_uri": f"{postgres.replace('%', '%%')}users",
        "admin_username": ADMIN,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": 60,  # a password costs as much as the rest of a request
    }
    users.write_text("[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    port = choose_port("127.0.0.1", None, 0)
    uri = f"https://localhost:{port}"
    trusted = ssl.create_default_context(cafile="cert.pem")

    def until():
        with contextlib.suppress(OSError):
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
            )
            return opener.open(f"{uri}/health", timeout=2).read() == b"OK"

    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri"]
    command += [f"{postgres}lab", "--artifacts-destination", str(workplace / "server-artifacts")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    certified = f"--ssl-keyfile {workplace}/key.pem --ssl-certfile {workplace}/cert.pem"
    command += ["--uvicorn-opts", f"{certified} --timeout-graceful-shutdown 5"]
    with process(*command, until=until, env={**os.environ, **environment}):
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(workplace / "cert.pem"))
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        yield uri


def cnnlab_(*arguments):
    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_from_a_training_to_a_served_model(server, workplace, monkeypatch, picture_folder):
    # Made here before there was a server.
    cnnlab_("train", "cnn", *SMALL)
    cnnlab_("register", "--best", "--promote", "--name", "made-here")
    local = contents(mlflow_store.store_uri())

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_PASSWORD", "another one")
        refused = CliRunner().invoke(cli, ["train", "cnn", *SMALL])
        assert refused.exit_code
        assert "401" in str(refused.exception)

    cnnlab_("compare", "cnn", "--seeds", "2", *SMALL)
    assert "Recorded as run" in cnnlab_("train", "cnn", *SMALL)
    tuned = cnnlab_("tune", "cnn", "--trials", "2", "--finalists", "1", "--final-seeds", "1", "--workers", "2", *SMALL)
    assert "Recorded as run" in tuned
    assert "Nothing remains to be delivered." in cnnlab_("sync")  # a busy machine does not deliver all in time
    kinds = {}
    with mlflow_store.opened():
        client = mlflow.MlflowClient()
        for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
            assert run.info.status == "FINISHED"
            kinds.setdefault(run.data.tags["cnnlab.kind"], []).append(run.info.run_id)
        best = run_queries.best_run()
    assert {kind: len(runs) for kind, runs in kinds.items()} == {
        "compare": 1,
        "search": 1,
        "trial": 2,
        "final": 1,
        "train": 4,
    }
    assert "is the first champion" in cnnlab_("register", "--best", "--promote")
    assert best.info.run_id in cnnlab_("models")
    answers = json.loads(cnnlab_("predict", "pictures/test", "--format", "json", "--model", "cnnlab-digits"))
    assert len(answers) == 4

    port = choose_port("127.0.0.1", None, 0)
    until_served = f"http://127.0.0.1:{port}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def until():
        with contextlib.suppress(OSError):
            return opener.open(until_served, timeout=2).status == 200

    command = [sys.executable, "-m", "cnnlab", "serve", "--model", "cnnlab-digits", "--port", str(port)]
    with process(*command, until=until):
        picture = next((picture_folder / "test" / "red").iterdir()).read_bytes()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/classify", picture, {"Content-Type": "image/png"})
        assert json.load(opener.open(asked, timeout=30))

    for last in ("copied: 1 run, 1 version, 1 alias\n", "already there: 1 run, 1 version\nNothing was copied.\n"):
        assert last in cnnlab_("import", "mlruns")
        there = contents(server)
        for what in ("runs", "models"):
            assert {key: there[what][key] for key in local[what]} == local[what]
        assert there["registered"]["made-here"] == local["registered"]["made-here"]
        assert len(there["runs"]) == 9 + 1
        assert set(there["registered"]) == {"cnnlab-digits", "made-here"}
