"""Several workers on this machine: KerasTuner's chief in this process, and a process for each worker, kept alive."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import psutil

from cnnlab.errors import LabError
from cnnlab.recipe import Recipe
from tuning.hypermodels import Range

RESTARTS = 3  # of a worker that dies; then the others do its trials


def search_with_workers(tuner, search, name, count) -> None:
    """Search with `count` worker processes, each with its share of the cores.

    A worker that dies is started again under its name and gets its trial again. At the failure limit, and when this
    process ends for whatever reason, all of them end.

    Raises:
        LabError: all workers died again and again.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    os.environ.update(address, KERASTUNER_TUNER_ID="chief")
    workers = {f"worker{i}": None for i in range(count)}
    restarts = dict.fromkeys(workers, -1)
    try:
        # A daemon, since KerasTuner's chief sleeps in steps of 20 seconds before it notices that all are gone.
        threading.Thread(target=tuner.search, daemon=True).start()
        while workers and not tuner.oracle.gave_up():
            for worker, process in list(workers.items()):
                status = 1 if process is None else process.poll()
                if status == 0:
                    del workers[worker]
                elif status is not None and restarts[worker] == RESTARTS:
                    del workers[worker]
                    tuner.oracle.abandon(worker)
                elif status is not None:
                    restarts[worker] += 1
                    workers[worker] = _start(search, name, {**address, "KERASTUNER_TUNER_ID": worker}, count)
            time.sleep(0.2)
    finally:
        _end([process for process in workers.values() if process])
        for variable in (*address, "KERASTUNER_TUNER_ID"):
            os.environ.pop(variable, None)
    if min(restarts.values()) == RESTARTS and len(tuner.oracle.end_order) < search.trials:
        raise LabError(
            f"Expected {count} workers to run trials. Received: each died {RESTARTS + 1} times. "
            "Their last words are above; try with --workers 1."
        )


def _start(search, name, variables, count):
    # At least one thread each; together no more than there are cores.
    threads = str(max(1, psutil.cpu_count() // count))
    threads = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": threads}
    settings = dataclasses.asdict(search)
    settings["space"] = {
        key: dataclasses.asdict(values) if isinstance(values, Range) else list(values)
        for key, values in search.space.items()
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tuning.workers", name, json.dumps(settings)],
        env={**os.environ, **threads, **variables, "no_grpc_proxy": "127.0.0.1"},
        start_new_session=True,  # Ctrl-C reaches this process only, which then ends them
    )


def _end(processes):
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(name, settings) -> None:
    """A worker: run trials for the chief until it says to stop, or until the process that started this one is gone."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    settings = json.loads(settings)
    settings["recipe"] = Recipe(**settings["recipe"])
    settings["space"] = {
        key: Range(**values) if isinstance(values, dict) else tuple(values) for key, values in settings["space"].items()
    }
    from cnnlab.job import job

    with job():
        from tuning.search import work_for_chief
        from tuning.trials import Search

        work_for_chief(Search(**settings), name)


def _end_with_parent(parent):
    """Without its chief a worker would wait for an hour for an answer."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except LabError as error:
        sys.exit(f"error: {error}")
