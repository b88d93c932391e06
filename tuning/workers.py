"""Several workers: KerasTuner's chief in this process, and workers that it starts here or that were started by hand."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil

from cnnlab.errors import ArgumentError, LabError, first_line
from cnnlab.models import Range
from cnnlab.ports import choose_port

RESTARTS = 3  # of a worker that dies; then the others do its trials
CHIEF_TIMEOUT = 120  # seconds that a worker waits for its chief to appear
ID, HOST, PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"


def role() -> str | None:
    """What KerasTuner's variables make of this process: "chief", "worker", or `None` without them.

    Raises:
        ArgumentError: some of them are missing, or the port is no number.
    """
    values = {name: os.environ.get(name, "") for name in (ID, HOST, PORT)}
    if not any(values.values()):
        return None
    if missing := [name for name, value in values.items() if not value]:
        raise ArgumentError(f"Expected {', '.join(values)} together. Received: no {' and no '.join(missing)}.")
    if not values[PORT].isdecimal():
        raise ArgumentError(f"Expected {PORT} to be a number. Received: '{values[PORT]}'.")
    return "chief" if "chief" in values[ID] else "worker"


def search_with_workers(tuner, search, name, count) -> None:
    """Search with `count` worker processes, each with its share of the cores.

    A worker that dies is started again under its name and gets its trial again. At the failure limit, and when this
    process ends for whatever reason, all of them end.

    Raises:
        LabError: all workers died again and again.
    """
    address = {HOST: "127.0.0.1", PORT: str(choose_port("127.0.0.1", None, 0))}
    os.environ.update({**address, ID: "chief"})
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
                    workers[worker] = _start(search, name, {**address, ID: worker}, count)
            time.sleep(0.2)
    finally:
        _end([process for process in workers.values() if process])
        for variable in (*address, ID):
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
        [sys.executable, "-m", "tuning.worker", name, json.dumps(settings)],
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


def answer_workers(tuner) -> None:
    """Be the chief of workers that were started by hand, until all trials ended or too many failed in a row.

    Raises:
        LabError: the address cannot be listened at.
    """
    address = f"{os.environ[HOST]}:{os.environ[PORT]}"
    errors = []

    def listen():
        try:
            tuner.search()
        except Exception as error:
            errors.append(error)

    # A daemon: KerasTuner's chief sleeps in steps of 20 seconds before it notices that the last worker has gone.
    threading.Thread(target=listen, daemon=True).start()
    print(f"Waiting for workers at {address}.", flush=True)
    oracle, waits_for = tuner.oracle, set()
    while not oracle.gave_up() and not oracle.waits_for_nobody():
        if errors:
            raise LabError(f"Expected to listen at {address}. Received: {first_line(errors[0])}.")
        late = set(oracle.ongoing_trials.items()) - waits_for if oracle.told_to_stop else ()
        for worker, trial in late:
            print(
                f"Waiting for trial {int(trial.trial_id)} of {worker}. If that worker died, start it again under its "
                "id; if it is gone for good, start this chief again.",
                flush=True,
            )
        waits_for.update(late)
        time.sleep(0.2)


def end_with_chief() -> None:
    """End this process, as SIGTERM does, when the chief is gone; KerasTuner would wait an hour for its answer."""

    def watch():
        deadline = time.monotonic() + CHIEF_TIMEOUT
        while not _answers(1) and time.monotonic() < deadline:
            time.sleep(1)
        while _answers(3):
            time.sleep(1)
        print(
            "error: the chief has ended. To go on, start it again, and then this worker.", file=sys.stderr, flush=True
        )
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answers(attempts):
    address = (os.environ[HOST], int(os.environ[PORT]))
    for attempt in range(attempts):
        time.sleep(min(attempt, 1))
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=5).close()
            return True
    return False
