"""Test searches on two Ray nodes on this machine: pytest -m cluster -n 0 tests/utils/test_ray_workers.py"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest

import cnnlab
from cnnlab.features import store_features
from cnnlab.tuning.search import run_search
from cnnlab.utils import user_cache
from cnnlab.utils.ports import choose_port
from cnnlab.utils.ray_workers import OBJECT_STORE, ray_workers
from cnnlab.utils.worker_pool import use_workers

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as the command does, before Ray is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

pytestmark = [pytest.mark.cluster]
pytest.importorskip("ray", reason="Ray is not installed: pip install 'cnnlab[ray]'")


@pytest.fixture
def cluster(store):
    from ray.cluster_utils import Cluster

    node = {
        "num_cpus": 1,
        "object_store_memory": OBJECT_STORE,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
    }
    client = choose_port("127.0.0.1", None, 0)
    cluster = Cluster(initialize_head=True, head_node_args={**node, "ray_client_server_port": client})
    cluster.second = cluster.add_node(**node)
    cluster.for_clients = f"ray://127.0.0.1:{client}"
    yield cluster
    cluster.shutdown()


def test_a_search_survives_a_node_that_is_killed(cluster, store, capfd):
    from tests.helpers.small_searches import runs_by_kind, small_search

    recipe = cnnlab.Recipe(dataset="digits", limit=150, filters=(4,), epochs=5)
    search = small_search(recipe=recipe, trials=3)

    def kill():
        while len([run for run in runs_by_kind(store).get("trial", ()) if run.info.status == "RUNNING"]) < 2:
            time.sleep(0.1)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    result = run_search(search, options=cnnlab.RunOptions(cluster=cluster.address))
    thread.join()
    said = capfd.readouterr()
    assert said.err.count(" lost its worker: ") == 1
    assert "trying it again (1 of 3)" in said.err
    assert [row["status"] for row in result.rows] == ["COMPLETED"] * 3
    kinds = runs_by_kind(store)
    assert {kind: len(runs) for kind, runs in kinds.items()} == {"search": 1, "trial": 3, "final": 1, "train": 1}
    assert {run.info.status for runs in kinds.values() for run in runs} == {"FINISHED"}
    assert len({run.data.tags["cnnlab.label"] for run in kinds["trial"]}) == 3
    [lost] = runs_by_kind(store, mlflow.entities.ViewType.DELETED_ONLY)["trial"]
    assert lost.data.tags["cnnlab.label"] in {run.data.tags["cnnlab.label"] for run in kinds["trial"]}
    assert len({run.data.tags["cnnlab.process"] for run in [*kinds["trial"], lost]}) >= 2


def test_a_pass_over_the_cluster_leaves_the_file_that_a_local_one_leaves(cluster, monkeypatch, tmp_path):
    recipe = cnnlab.Recipe(
        model="vgg16", weights="random", dataset="digits", limit=300, augment="flip", frozen_precision="float32"
    )
    local = store_features(recipe)
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    with ray_workers(cluster.for_clients) as workers, use_workers(workers):
        spread = store_features(recipe)
    assert len(local.new) == 2  # the pictures and the mirrored ones
    assert {entry["key"] for entry in spread.new} == {entry["key"] for entry in local.new}
    for one in local.new:
        [other] = [entry for entry in user_cache.entries() if entry["key"] == one["key"]]
        expected, received = np.load(one["path"]), np.load(other["path"])
        assert received.dtype == expected.dtype
        assert received == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trials_and_the_cluster(sent, store):
    from tests.helpers.small_searches import runs_by_kind

    arguments = "tune cnn --dataset digits --limit 150 --filters 4 --epochs 9000 --trials 3 --on ray --cpus 1".split()
    process = subprocess.Popen([sys.executable, "-m", "cnnlab", *arguments], stderr=subprocess.PIPE, text=True)
    try:
        while len(running := runs_by_kind(store).get("trial", ())) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
    finally:
        process.send_signal(sent)
    assert ("interrupted" in process.communicate(timeout=120)[1]) == (sent == signal.SIGINT)
    assert process.returncode == 128 + sent
    kinds = runs_by_kind(store)
    assert [run.info.status for run in (*kinds["trial"], *kinds["search"])] == ["KILLED"] * 3
    workers = [run.data.tags["cnnlab.process"].rpartition("/")[2].partition("-")[0] for run in running]
    deadline = time.monotonic() + 30
    while any(Path("/proc", pid).exists() for pid in workers):  # Ray ends them after itself
        assert time.monotonic() < deadline
        time.sleep(0.2)
