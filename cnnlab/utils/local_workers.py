"""Run jobs in processes of this machine: `ProcessWorkers` starts them, and `work` is what each of them runs.

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
from collections import deque
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from cnnlab.utils.screen import set_up_streams
from cnnlab.utils.startup import job as command
from cnnlab.utils.worker_pool import Job, JobResult, Workers, run_pickled

PATIENCE = 10  # seconds that a worker has to end when it is asked to
WORKER = "import sys; sys.path[:] = sys.argv[3:]; from cnnlab.utils.local_workers import work; work(*sys.argv[1:3])"


class ProcessWorkers(Workers):
    """Workers that are processes, each with its share of the cores; they keep what their jobs load.

    A process that dies is replaced when there is a job for it. Those that load TensorFlow do so before their first job,
    and print what libraries write to stderr.
    """

    def __init__(self, count: int, loads_tensorflow: bool = True) -> None:
        self.count, self.loads_tensorflow = count, loads_tensorflow
        self.processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self.jobs: dict[Connection, deque[Job]] = {}  # of each process, the one that it is at first
        self.lost: list[JobResult] = []

    def room(self) -> int:
        return self.count

    def start(self, job: Job) -> None:
        connection = min(self.jobs, key=lambda connection: len(self.jobs[connection]), default=None)
        if connection is None or (self.jobs[connection] and len(self.jobs) < self.count):
            connection = self._start_process()
        self.jobs[connection].append(job)
        with contextlib.suppress(OSError):  # it has just died, which is found when its result is waited for
            connection.send_bytes(pickle.dumps(job))

    def _start_process(self) -> Connection:
        # At least one thread each; together no more than there are cores.
        threads = str(max(1, (psutil.cpu_count() or 1) // self.count))
        threads = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": threads}
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(theirs.fileno()), str(self.loads_tensorflow), *sys.path],
                env={**os.environ, **threads},
                # libtiff writes its complaints about a broken file to stderr; the reason is in the job's result.
                stderr=None if self.loads_tensorflow else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends them
            )
        self.processes[ours], self.jobs[ours] = process, deque()
        return ours

    def next_result(self) -> JobResult:
        if self.lost:
            return self.lost.pop()
        connection: Any = wait([connection for connection, jobs in self.jobs.items() if jobs])[0]
        try:
            value, error = connection.recv()
        except (EOFError, OSError):
            connection.close()
            status = self.processes.pop(connection).wait()
            reason = f"ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
            self.lost = [JobResult(job, lost=reason) for job in self.jobs.pop(connection)]
            return self.lost.pop()
        return JobResult(self.jobs[connection].popleft(), value, error)

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


def work(descriptor: str, loads_tensorflow: str) -> None:
    """Run the jobs that come over a connection, until it closes."""
    set_up_streams()
    connection: Connection = Connection(int(descriptor))
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

    with command() if loads_tensorflow == "True" else contextlib.nullcontext():
        threading.Thread(target=listen, daemon=True).start()
        while (received := jobs.get()) is not None:
            connection.send(run_pickled(received))
