"""Run jobs in a Ray cluster: one on this machine that begins and ends with the command, or a running one.

No other module uses Ray, which is the extra `ray`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

from cnnlab.errors import ArgumentError, expecting, first_line
from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log
from cnnlab.utils.screen import is_live
from cnnlab.utils.signals import signals_held
from cnnlab.utils.user_cache import FOLDER_VARIABLE, cache_folder
from cnnlab.utils.worker_pool import Job, JobResult, SharedArgument, Workers, run_pickled, use_workers

LOCAL = "ray"
OBJECT_STORE = 256 * 2**20  # bytes of a local cluster's: pictures and features on their way
SENT = ("MLFLOW_", "CNNLAB_")  # beginnings of the names of environment variables that workers get from this process
PATIENCE = 10  # seconds that jobs have to end when they are cancelled, and for an address to answer


def expect_address(on: str) -> None:
    """Raise `ArgumentError` unless `on` says where a cluster is, or Ray is not installed."""
    if on != LOCAL and not re.fullmatch(r"(ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", on):
        raise ArgumentError(
            f"Expected the cluster (--on) to be ray (a cluster on this machine, for this command), HOST:PORT (a "
            f"cluster that this machine is a node of) or ray://HOST:PORT (any other). Received: '{on}'."
        )
    if importlib.util.find_spec("ray") is None:
        raise ArgumentError(
            "Expected the package ray for a cluster. Received: none. Install it: pip install 'cnnlab[ray]'."
        )


@contextmanager
def ray_workers(
    on: str,
    *,
    cpus: float | None = None,
    gpus: float | None = None,
    limit: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[RayWorkers]:
    """Connect to a cluster and yield its workers; at the end, jobs that are still under way are cancelled.

    Args:
        on: "ray", "HOST:PORT" or "ray://HOST:PORT".
        cpus, gpus: that a job asks for. By default one GPU where there are some, with its share of a node's CPUs, else
            one CPU.
        limit: number of jobs at a time at most; by default as many as the cluster has room for.
        variables: environment variables of the workers besides those of MLflow and cnnlab.

    Raises:
        LabError: the cluster does not answer.
        ArgumentError: none of its nodes has what a job asks for.
    """
    expect_address(on)
    with _connected(on) as ray:
        workers = RayWorkers(ray, on, cpus, gpus, limit, variables or {})
        log.info(workers.described())
        try:
            yield workers
        finally:
            workers.close()


@contextmanager
def passes_on_cluster(on: str | None, cpus: float | None = None, gpus: float | None = None) -> Iterator[None]:
    """Let a cluster, where one is given, compute the features of frozen layers inside; see `ray_workers`."""
    if on is None:
        yield
        return
    with ray_workers(on, cpus=cpus, gpus=gpus) as workers, use_workers(workers):
        yield


@contextmanager
def _connected(on: str) -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # We make no runtime environments, whose hooks `uv run` would set.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Else it takes the GPUs from the sight of a job that asks for none only with a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not is_live(sys.stderr):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if on == LOCAL:
        # Makes Ray listen on the loopback address only (seen in 2.60); without it, it listens on all addresses.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    else:
        host, _, port = on.removeprefix("ray://").rpartition(":")
        cure = "Run 'ray start --head' there, or use the cluster ray."
        with expecting(f"a Ray cluster at '{on}'", cure, "", (OSError, OverflowError)):
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    import ray  # pyright: ignore[reportMissingImports]

    quiet = {"logging_level": "ERROR", "log_to_driver": True}
    # Short, as sockets are in it, and of this user alone.
    folder = tempfile.mkdtemp(prefix="cnnlab-ray-") if on == LOCAL else None
    elsewhere = "See 'ray status' there; HOST:PORT needs a node on this machine."
    with (
        expecting(f"a Ray cluster at '{on}'", "Try without the cluster." if on == LOCAL else elsewhere),
        _sigterm_kept(),
    ):
        if on == LOCAL:
            size = {"num_cpus": psutil.cpu_count(), "object_store_memory": OBJECT_STORE}
            ray.init(address="local", include_dashboard=False, _temp_dir=folder, **size, **quiet)
        else:
            ray.init(address=on, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep our handler of SIGTERM, which Ray replaces with one by which a command would end with another status."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class RayWorkers(Workers):
    """Workers that run jobs as Ray's tasks, each with the CPUs and GPUs that it asks for, wherever there is room.

    `ray` is the module, connected to a cluster; the other arguments are as for `ray_workers`.
    """

    def __init__(
        self, ray: Any, on: str, cpus: float | None, gpus: float | None, limit: int | None, variables: Mapping[str, str]
    ) -> None:
        self.ray, self.on, self.limit = ray, on, limit
        nodes = self._nodes()
        with_gpus = [node for node in nodes if node.get("GPU")]
        if gpus is None:
            gpus = 1 if with_gpus and cpus is None else 0
        if cpus is None:
            cpus = 1
            if gpus:
                cpus = min((max(1, int(node["CPU"] * gpus // node["GPU"])) for node in with_gpus), default=1)
        self.needed: dict[str, float] = {"CPU": cpus, "GPU": gpus}
        if not any(_fits(node, self.needed) for node in nodes):
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
            raise ArgumentError(
                f"Expected a node with {_text(self.needed)} for each job in the cluster at '{on}'. Received: "
                f"{len(nodes)} nodes, the largest with {_text(largest)}. Ask for fewer cpus and gpus."
            )
        sent = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
        self.variables: dict[str, str] = {**sent, **variables}
        if read_variable(FOLDER_VARIABLE):
            self.variables[FOLDER_VARIABLE] = str(cache_folder().resolve())
        self.call: Any = ray.remote(max_retries=0, num_cpus=cpus, num_gpus=gpus)(_run_task)
        ours = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
        self.elsewhere: list[str] = sorted({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} - ours)
        self.jobs: dict[Any, Job] = {}
        self.waits_since: float | None = None
        self.has_warned: bool = False

    def described(self) -> str:
        """Describe the cluster in a line."""
        nodes = self._nodes()
        total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
        where = "on this machine" if self.on == LOCAL else f"at {self.on}"
        return (
            f"Ray cluster {where}: {len(nodes)} node{'s' * (len(nodes) > 1)}, {_text(total)}; "
            f"{self.room()} at a time with {_text(self.needed)} each."
        )

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def room(self) -> int:
        fitting = sum(_fits(node, self.needed) for node in self._nodes())
        return max(1, min(fitting, self.limit or fitting))

    def share(self, value: Any) -> Any:
        return self.ray.put(value)

    def start(self, job: Job) -> None:
        # Ray puts a shared value in its place only where it is an argument of the call itself.
        shared = [argument for argument in job.arguments if isinstance(argument, self.ray.ObjectRef)]
        arguments = [SharedArgument(shared.index(a)) if isinstance(a, self.ray.ObjectRef) else a for a in job.arguments]
        pickled = pickle.dumps(dataclasses.replace(job, arguments=tuple(arguments)), protocol=5)
        self.jobs[self.call.options(name=job.name).remote(pickled, self.variables, *shared)] = job

    @signals_held()  # raised in Ray's midst, SystemExit loses its status
    def next_result(self) -> JobResult | None:
        kinds = (self.ray.exceptions.RayError, ConnectionError)
        cure = "Start it again, and then this job."
        with expecting(f"the Ray cluster at '{self.on}' to go on answering", cure, kinds=kinds):
            ready, _ = self.ray.wait(list(self.jobs), timeout=1)
            if not ready:
                self._warn_without_room()
                return None
        self.waits_since, self.has_warned = None, False
        job = self.jobs.pop(ready[0])
        try:
            return JobResult(job, *self.ray.get(ready[0]))
        except self.ray.exceptions.RayTaskError as error:  # before our code was reached
            return JobResult(job, error=str(error))
        except self.ray.exceptions.RayError as error:
            return JobResult(job, lost=f"{type(error).__name__}, {first_line(error)}")

    def _warn_without_room(self) -> None:
        """Warn where no node is large enough for a job any more, as nothing would ever end then."""
        if any(_fits(node, self.needed) for node in self._nodes()):
            self.waits_since = None
            return
        self.waits_since = self.waits_since or time.monotonic()
        if not self.has_warned and time.monotonic() > self.waits_since + PATIENCE:
            log.warning(f"waiting for a node with {_text(self.needed)}.")
            self.has_warned = True

    def close(self) -> None:
        """Cancel jobs that are under way: a training ends as it does at Ctrl-C, so that its run says so."""
        calls, self.jobs = list(self.jobs), {}
        with contextlib.suppress(Exception):  # the cluster may be gone
            for call in calls:
                self.ray.cancel(call)
            self.ray.wait(calls, num_returns=len(calls), timeout=PATIENCE)


def _fits(node: Mapping[str, float], needed: Mapping[str, float]) -> int:
    """Count the jobs that a node's resources suffice for."""
    return min(math.floor(node.get(kind, 0) / count) for kind, count in needed.items() if count)


def _text(resources: Mapping[str, float]) -> str:
    """Write a node's CPUs, and GPUs where it has some: "2 CPUs and 1 GPU"."""
    counts = {"CPU": resources.get("CPU", 0), **({"GPU": resources["GPU"]} if resources.get("GPU") else {})}
    return " and ".join(f"{count:g} {kind}{'s' * (count != 1)}" for kind, count in counts.items())


def _run_task(pickled: bytes, variables: Mapping[str, str], *shared: Any) -> tuple[Any, str | None]:
    """Run a job as a task of the cluster. It is unpickled last, as that imports TensorFlow."""
    from cnnlab.utils.startup import job

    os.environ.update(variables)
    # Ray sets this one to the CPUs that the task asked for.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", read_variable("OMP_NUM_THREADS") or "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    with job():
        return run_pickled(pickled, shared)
