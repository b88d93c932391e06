"""Run jobs in processes on this machine, each started as `python -m cnnlab.utils.local_workers DESCRIPTOR`.

The processes of multiprocessing and of concurrent.futures would run the user's script again wherever it does not guard
its main part, and a pool of the latter breaks as a whole when one of its processes is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from cnnlab.utils.startup import job as command
from cnnlab.utils.worker_pool import Job, JobResult, run_pickled

PATIENCE = 10  # seconds that a worker has to end when it is asked to


class ProcessWorkers:
    """Workers that are processes, each with its share of the cores; they keep what their jobs load.

    A process that dies is replaced when there is a job for it.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self.jobs: dict[Connection, Job] = {}

    def room(self) -> int:
        return self.count

    def share(self, value: Any) -> Any:
        return value

    def start(self, job: Job) -> None:
        idle = next((connection for connection in self.processes if connection not in self.jobs), None)
        connection = idle or self._start_process()
        self.jobs[connection] = job
        with contextlib.suppress(OSError):  # it has just died, which is found when its answer is waited for
            connection.send_bytes(pickle.dumps(job))

    def _start_process(self) -> Connection:
        # At least one thread each; together no more than there are cores.
        threads = str(max(1, (psutil.cpu_count() or 1) // self.count))
        threads = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": threads}
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "cnnlab.utils.local_workers", str(theirs.fileno())],
                env={**os.environ, **threads},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends them
            )
        self.processes[ours] = process
        return ours

    def next_result(self) -> JobResult:
        connection: Any = wait(list(self.jobs))[0]
        job = self.jobs.pop(connection)
        try:
            return JobResult(job, *connection.recv())
        except (EOFError, OSError):
            process = self.processes.pop(connection)
            connection.close()
            return JobResult(job, lost=_how_it_ended(process.wait()))

    def close(self) -> None:
        processes, self.processes, self.jobs = self.processes, {}, {}
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _how_it_ended(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def work(descriptor: int) -> None:
    """Run the jobs that come over a connection, until it closes."""
    connection: Connection = Connection(descriptor)
    jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                jobs.put(connection.recv_bytes())
        # The process that handed out the jobs has ended. A training ends as at SIGTERM, so that its run says so.
        jobs.put(None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)

    with command():
        threading.Thread(target=listen, daemon=True).start()
        while (received := jobs.get()) is not None:
            connection.send(run_pickled(received))


if __name__ == "__main__":
    work(int(sys.argv[1]))
