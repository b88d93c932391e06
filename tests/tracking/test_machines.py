"""Test real containers, users, disks and servers, made here: CNNLAB_MACHINES=1 pytest -n 0 -m machines

Most need root, for namespaces and mounts of their own that end with the test.
"""

import contextlib
import multiprocessing
import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest

from cnnlab.tracking import mlflow_store as stores
from cnnlab.tracking import run_logging
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.tag_names import TAG
from tests.helpers.pictures import fill

recorder = Recorder()

pytestmark = [
    pytest.mark.machines,
    pytest.mark.skipif(not os.environ.get("CNNLAB_MACHINES"), reason="CNNLAB_MACHINES is not set"),
]
SMALL = "train cnn --dataset digits --limit 100 --epochs 1"
CONTAINER = "unshare --pid --fork --mount-proc --uts"
USERS, GROUP = (12345, 12346), 12347  # without an entry in the system's list of users

LOGS = """
import sys, cnnlab
from cnnlab.tracking import mlflow_store, run_logging
from cnnlab.tracking.recorder import Recorder
mlflow_store.open_store()
recorder = Recorder()
digits = cnnlab.load_dataset("digits", limit=20)
with recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}) as run_id:
    run_logging.log_results({}, {}, {"note.txt": "a text"})
    print(run_id, flush=True)
    if "waits" in sys.argv:
        sys.stdin.readline()
"""
OPENS = "from cnnlab.tracking import mlflow_store; mlflow_store.open_store()"


def shell(script, **environment):
    """What a script of the shell printed, its errors with it; `$PYTHON` and `$LAB` are ours."""
    given = {**os.environ, "PYTHON": f"{sys.executable} -W ignore", "LAB": f"{sys.executable} -W ignore -m cnnlab"}
    return subprocess.run(
        ["sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**given, **environment},
    )


def in_a_mount_namespace(script, **environment):
    """As `shell`, where mounts end with the script."""
    if subprocess.run(["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], check=False).returncode:
        pytest.skip("no mounts here")
    return shell(f"unshare --mount sh -c {shlex.quote(script)}", **environment)


@pytest.fixture
def open_place(monkeypatch):
    """A working folder that other users come to."""
    if os.geteuid():
        pytest.skip("only root has other users")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.chdir(folder)
        tried = shell(f"setpriv --reuid {USERS[0]} --regid {GROUP} --clear-groups $PYTHON -c 'import cnnlab'")
        if tried.returncode:
            pytest.skip("other users may not read this Python")
        yield Path(folder)


def statuses():
    with contextlib.closing(sqlite3.connect("mlruns/mlflow.db")) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs")]


def test_two_containers_of_one_host_name_share_a_store(store, workplace):
    if shell(f"{CONTAINER} hostname box").returncode:
        pytest.skip("no namespaces here")
    inside = [*CONTAINER.split(), "sh", "-c", 'hostname box && exec "$@"', "sh", sys.executable, "-c"]
    with subprocess.Popen([*inside, LOGS, "waits"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as live:
        live.stdout.readline()
        subprocess.run([*inside, OPENS], check=True)
        assert statuses() == ["RUNNING"]
        shutil.rmtree(workplace / "mlruns/running", ignore_errors=True)  # as where there are no locks
        subprocess.run([*inside, OPENS], check=True)
        assert statuses() == ["RUNNING"]
        live.communicate("\n")
    assert statuses() == ["FINISHED"]


def test_two_users_share_a_folder_of_their_group(open_place):
    os.chown(open_place, -1, GROUP)
    os.chmod(open_place, 0o2775)
    for user in USERS:
        done = shell(
            f"umask 002 && exec setpriv --reuid {user} --regid {user} --groups {GROUP} $PYTHON -c '{LOGS}'", HOME="/tmp"
        )
        assert done.returncode == 0, done.stdout
    assert statuses() == ["FINISHED", "FINISHED"]


def test_a_user_without_an_entry_or_a_home_trains(open_place):
    os.chown(open_place, USERS[0], GROUP)
    user = f"setpriv --reuid {USERS[0]} --regid {GROUP} --clear-groups env -u LOGNAME -u USER -u KERAS_HOME"
    for home in ("/", "/nonexistent"):
        done = shell(
            f"{user} $LAB {SMALL}",
            HOME=home,
            CNNLAB_CACHE="",
        )
        assert done.returncode == 0, done.stdout
        assert "WARNING" not in done.stdout
    assert statuses() == ["FINISHED", "FINISHED"]


def test_a_full_disk_under_the_cache(workplace):
    done = in_a_mount_namespace(
        "mkdir cache && mount -t tmpfs -o size=32k tmpfs cache && "
        "$LAB train vgg16 --dataset digits --limit 100 --epochs 1 --weights random && ls cache/features",
        CNNLAB_CACHE=str(workplace / "cache"),
    )
    assert done.returncode == 0, done.stdout
    assert "cannot be stored" in done.stdout
    assert "keeping them in memory" in done.stdout
    assert ".npy" not in done.stdout.splitlines()[-1]
    assert statuses() == ["FINISHED"]


# 80 pictures of 64 x 64 pixels are 960 KiB, and 984 with what is known of them and where they lie. The last two have no
# room for one more file, before and behind the pass.
@pytest.mark.parametrize("room", ["size=64k", "size=964k", "size=984k", "nr_inodes=3", "nr_inodes=7"])
def test_a_full_disk_under_the_decoded_pictures(room, workplace):
    fill("birds", ["robin", "wren"], 40)
    done = in_a_mount_namespace(
        f"mkdir cache && mount -t tmpfs -o {room} tmpfs cache && "
        "$LAB train cnn --dataset birds --stored-size 64 --filters 4 --epochs 1 && ls cache/pictures",
        CNNLAB_CACHE=str(workplace / "cache"),
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("warning") == 1
    assert "warning: decoded pictures (1 MB) cannot be stored in" in done.stdout
    assert "keeping them in memory" in done.stdout
    left = done.stdout.splitlines()[-1]
    assert left.endswith(".lock"), done.stdout
    assert not any(
        line.startswith("unfinished") or line.endswith((".npy", ".npz")) for line in done.stdout.splitlines()
    )
    assert statuses() == ["FINISHED"]


def test_a_disk_under_the_store_that_fills_up(workplace):
    done = in_a_mount_namespace(
        f"mkdir mlruns && mount -t tmpfs -o size=2300k tmpfs mlruns && $LAB {SMALL} --dense-units 512; echo status $?; "
        "$LAB models; echo status $?; cp -r mlruns/mlflow.db ."
    )
    lines = done.stdout.splitlines()
    assert "status 1" in lines, done.stdout
    assert "Expected space on the disk" in lines[lines.index("status 1") - 1]
    assert lines[-2:] == ["No model is registered. 'cnnlab register' registers the best run.", "status 0"]
    assert "Traceback" not in done.stdout


def test_a_read_only_file_system_is_read(workplace, store, digits):
    with recorder.start(recorder.experiment_for(digits), "a", params={}, tags={}):
        pass
    done = in_a_mount_namespace(
        "mount --bind mlruns mlruns && mount -o remount,ro,bind mlruns && "
        f"$LAB models && ! $LAB {SMALL} && mkdir empty && mount -t tmpfs -o ro tmpfs empty && cd empty && ! $LAB models"
    )
    assert done.returncode == 0, done.stdout
    said = [line for line in done.stdout.splitlines() if line.strip()]
    assert said[0].startswith("No model is registered")
    assert all("is not a writable folder" in line for line in said[1:])
    assert len(said) == 3


PROJECT = """name: lab
entry_points:
  main:
    command: "python -W ignore -m cnnlab train cnn --dataset digits --limit 100 --epochs 1"
"""


def test_mlflow_run(workplace):
    (workplace / "MLproject").write_text(PROJECT)
    done = shell(
        "$PYTHON -m mlflow run . --env-manager local --experiment-name theirs",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stdout
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("theirs").experiment_id
    outer, inner = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert {outer.info.status, inner.info.status} == {"FINISHED"}
    [said] = [line for line in done.stdout.splitlines() if line.startswith("Recorded as run")]
    address = said.rpartition("MLFLOW_TRACKING_URI=")[2].split()[0].strip("'")
    with contextlib.chdir("/"):
        assert mlflow.MlflowClient(address).get_run(inner.info.run_id).info.run_name == "cnn on digits"


def _first(folder, digits, barrier, failures):
    os.chdir(folder)
    barrier.wait()
    try:
        stores.open_store()
        with recorder.start(recorder.experiment_for(digits), "a", params={}, tags={}):
            run_logging.log_dataset(digits)
            mlflow.log_metric("loss", 1.0)
        failures.put(None)
    except BaseException as error:
        failures.put(repr(error))


@pytest.mark.parametrize("attempt", range(5))
def test_24_first_runs_at_once(workplace, digits, attempt):
    context = multiprocessing.get_context("fork")  # 24 imports of MLflow would take minutes
    barrier, failures = context.Barrier(24), context.Queue()
    processes = [context.Process(target=_first, args=(workplace, digits, barrier, failures)) for _ in range(24)]
    for process in processes:
        process.start()
    assert [failures.get(timeout=300) for _ in processes] == [None] * 24
    assert statuses() == ["FINISHED"] * 24
    with contextlib.closing(sqlite3.connect("mlruns/mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM experiments WHERE name = 'cnnlab-digits'").fetchone() == (1,)


@contextlib.contextmanager
def served(port):
    """MLflow's server on loopback, until the block ends."""
    arguments = ["--backend-store-uri", "sqlite:///served.db", "--artifacts-destination", "served"]
    with subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                time.sleep(0.5)
            yield
        finally:
            server.terminate()


def test_a_search_whose_server_is_away_for_35_seconds(workplace):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    command = "tune cnn --dataset digits --limit 300 --epochs 4 --trials 4 --finalists 1 --final-seeds 1 --tuner random"
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])

    def trials():
        """The status and the score of each, oldest first."""
        runs = client.search_runs(["1"], f"tags.`{TAG}kind` = 'trial'", order_by=["attributes.start_time ASC"])
        return [(run.info.status, run.data.metrics.get("score")) for run in runs]

    with open("out.txt", "w") as out:
        with served(port):
            search = subprocess.Popen(
                [sys.executable, "-m", "cnnlab", *command.split()], env=environment, stdout=out, stderr=out
            )
            while "trial 0" not in Path("out.txt").read_text():
                assert search.poll() is None, Path("out.txt").read_text()
                time.sleep(0.2)
        time.sleep(35)
        with served(port):
            assert search.wait(500) == 0, Path("out.txt").read_text()
            found = trials()
    said = Path("out.txt").read_text()
    assert [status for status, _ in found] == ["FINISHED"] * 4, said
    assert all(score > 0 for _, score in found)
    assert "does not answer" in said or "sent again" in said
    assert "Traceback" not in said
