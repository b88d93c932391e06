"""Test trainings while a real `mlflow server` goes away: pytest -n 0 tests/tracking/offline/test_outages.py

Prints a line for each: what was wrong, seconds of the training, seconds that the command then took for the server,
what it said, how many runs `cnnlab sync` delivered, what is on the server then, and how much a second one changed.

The outage within a longer training takes CNNLAB_OUTAGE_MINUTES (1), and the training 1.4 times as long.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import mlflow
import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

import cnnlab
from cnnlab.resolve import build_model
from cnnlab.tracking import mlflow_store as stores
from cnnlab.tracking import server_checks
from cnnlab.tracking.offline import delivery, spool
from cnnlab.utils.ports import choose_port
from tests.helpers.faulty_proxy import served
from tests.tracking.offline.test_spool import there, whole

pytestmark = [
    pytest.mark.outages,
    pytest.mark.skipif("CNNLAB_OUTAGES" not in os.environ, reason="CNNLAB_OUTAGES is not set"),
]
EPOCHS = 6
AWAY = 60 * float(os.environ.get("CNNLAB_OUTAGE_MINUTES", "1"))  # seconds
PACE = 1  # second that an epoch of the longer training rests


class Server:
    """`mlflow server` in a process of its own."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, choose_port("127.0.0.1", None, 0), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        arguments = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--port", str(self.port)]
        arguments += ["--artifacts-destination", f"{self.folder}/artifacts", "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )

    def ready(self):
        if self.process is None or self.process.poll() is not None:
            self.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(cnnlab.LabError):
                return server_checks.expect_reachable(self.uri)
            time.sleep(0.5)

    def kill(self, signum=signal.SIGKILL):
        os.killpg(self.process.pid, signum)
        if signum == signal.SIGKILL:
            self.process.wait()


@pytest.fixture
def server(store_template, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store_template, folder / "server.db")
    server = Server(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    if server.process.poll() is None:
        server.kill(signal.SIGCONT)
        server.kill()


def after(seconds, do):
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


class Paced(keras.callbacks.Callback):
    """Rests after each epoch, and has the seconds of each but the first, which is traced, without the rest."""

    def __init__(self):
        super().__init__()
        self.rested, self.seconds = None, []

    def on_epoch_end(self, epoch, logs=None):
        if self.rested is not None:
            self.seconds.append(time.monotonic() - self.rested)
        time.sleep(PACE)
        self.rested = time.monotonic()


def trained(at_epoch, monkeypatch, capsys, epochs=EPOCHS, when=1, callbacks=()):
    """`(result, seconds in training, seconds at the end for the server, what was said)`."""
    recipe = cnnlab.Recipe(model="cnn", dataset="digits", filters=(8,), dense_units=16, epochs=epochs, limit=150)
    dataset = cnnlab.load_dataset("digits", limit=150)
    finish, times = delivery.Sender.finish, {}

    def measured(self):
        times["ended"] = time.monotonic()
        try:
            return finish(self)
        finally:
            times["waited"] = time.monotonic() - times["ended"]

    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: at_epoch() if epoch == when else None)
    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(delivery.Sender, "finish", measured)
        result = cnnlab.fit_and_evaluate(
            build_model(recipe, dataset), dataset, recipe, callbacks=[callback, *callbacks]
        )
    return result, times["ended"] - started, times["waited"], capsys.readouterr().err


def reported(name, server, result, training, waited, said, capsys):
    """Deliver twice, check that all of it is there once, and print the line of the table."""
    words = re.findall(r"Received: (.*?)\. It is on the disk", said)
    delivered = [len(done.runs) for done in delivery.sync() if done.error is None]
    [run] = there(server).values()
    facts = whole(server, run)
    again = list(delivery.sync())
    assert [step for step, _, _ in facts[2]["loss"]] == list(range(len(result.history["loss"])))
    assert [value for _, _, value in facts[2]["loss"]] == result.history["loss"]
    assert facts[0] == "FINISHED"
    assert len(facts[3]) > 8
    assert len(facts[5]) == len(facts[6]) == 1
    assert not facts[-1]
    mlflow.set_tracking_uri(server.uri)
    assert mlflow.keras.load_model(f"models:/{facts[6][0]}").count_params() == result.params
    mlflow.set_tracking_uri(None)
    assert again == []
    assert whole(server, there(server)["cnn on digits"]) == facts
    assert spool.entries() == []
    assert waited < 30
    with capsys.disabled():
        print(
            f"\n| {name} | {training:.0f} | {waited:.1f} | {words[0] if words else 'all there'} | {sum(delivered)} | "
            f"{len(facts[2]['loss'])} epochs, {len(facts[3])} files, 1 model | 0 |"
        )


def nothing():
    pass


@pytest.mark.parametrize(
    "name",
    [
        "stopped before the start, back later",
        "killed in an epoch, back after 5 s",
        "killed in an epoch, back after minutes",
        "killed while the model is uploaded",
        "hangs from an epoch on",
        "hangs for 10 s",
    ],
)
def test_a_server_that_goes_away(name, server, monkeypatch, capsys):
    server.ready()
    at_epoch, uploads = nothing, HttpArtifactRepository.log_artifact
    if name.startswith("stopped"):
        server.kill()
    elif name.startswith("killed in an epoch"):

        def at_epoch():
            server.kill()
            if "5 s" in name:
                after(5, server.start)
    elif name.startswith("killed while"):

        def killed(self, file, path=None):
            if "model.keras" in file:
                server.kill(signal.SIGSTOP)
                after(1, server.kill)
            return uploads(self, file, path)

        monkeypatch.setattr(HttpArtifactRepository, "log_artifact", killed)
    else:

        def at_epoch():
            server.kill(signal.SIGSTOP)
            if "10 s" in name:
                after(10, lambda: server.kill(signal.SIGCONT))

    result, *said = trained(at_epoch, monkeypatch, capsys)
    monkeypatch.setattr(HttpArtifactRepository, "log_artifact", uploads)
    if "hangs" in name:
        server.kill(signal.SIGCONT)
    server.ready()
    reported(name, server, result, *said, capsys)


def test_a_server_that_is_away_for_minutes_within_a_training(server, monkeypatch, capsys):
    server.ready()

    def at_epoch():
        server.kill()
        after(AWAY, server.start)

    epochs, paced = int(1.4 * AWAY / PACE), Paced()
    result, training, *said = trained(at_epoch, monkeypatch, capsys, epochs, epochs // 7, [paced])
    assert len(result.history["loss"]) == len(paced.seconds) + 1 == epochs
    assert training > 1.4 * AWAY
    assert max(paced.seconds) < 1, sorted(paced.seconds)[-5:]
    reported(
        f"killed in an epoch, back after {AWAY:.0f} s; the longest epoch {max(paced.seconds):.2f} s besides its rest",
        *(server, result, training, *said, capsys),
    )


@pytest.mark.parametrize("fault", [500, 429, "artifacts refused (503)"])
def test_a_server_that_answers_with_trouble(fault, store_template, tmp_path_factory, monkeypatch, capsys):
    database = tmp_path_factory.mktemp("server") / "server.db"
    shutil.copy(store_template, database)
    with served(database) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        stores.expect_usable_store()

        def at_epoch():
            server.fault = lambda method, path: (
                fault if isinstance(fault, int) else 503 if "mlflow-artifacts" in path else None
            )

        result, *said = trained(at_epoch, monkeypatch, capsys)
        server.fault = lambda method, path: None
        reported(str(fault), server, result, *said, capsys)
