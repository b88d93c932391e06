"""Workers that are processes on this machine; each is started as `python -m cnnlab.utils.local_workers DESCRIPTOR`."""

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

import psutil

from cnnlab.utils.startup import job
from cnnlab.utils.worker_pool import Ended, perform

PATIENCE = 10  # seconds that a worker has to end when it is asked to


class Processes:
    """So many worker processes, each with its share of the cores; they keep what their jobs load.

    One that dies is replaced when there is a job for it.
    """

    def __init__(self, count):
        self.count = count
        self.processes, self.jobs = {}, {}  # by connection

    def room(self):
        return self.count

    def share(self, value):
        return value

    def start(self, job):
        idle = next((connection for connection in self.processes if connection not in self.jobs), None)
        connection = idle or self._start_process()
        self.jobs[connection] = job
        with contextlib.suppress(OSError):  # it has just died, which is found when its answer is waited for
            connection.send_bytes(pickle.dumps(job))

    def _start_process(self):
        # At least one thread each; together no more than there are cores.
        threads = str(max(1, psutil.cpu_count() // self.count))
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

    def next_ended(self):
        connection = wait(list(self.jobs))[0]
        job = self.jobs.pop(connection)
        try:
            return Ended(job, *connection.recv())
        except (EOFError, OSError):
            process = self.processes.pop(connection)
            connection.close()
            return Ended(job, lost=_last_words(process.wait()))

    def close(self):
        """End all of them, whatever they are at."""
        processes, self.processes, self.jobs = self.processes, {}, {}
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_words(status):
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def serve(descriptor) -> None:
    """Be a worker: make the calls that come over a connection, until it closes."""
    connection, jobs = Connection(descriptor), queue.SimpleQueue()

    def listen():
        with contextlib.suppress(EOFError, OSError):
            while True:
                jobs.put(connection.recv_bytes())
        # Who asked is gone. A training ends as it does at SIGTERM, so that its run says so.
        jobs.put(None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)

    with job():
        threading.Thread(target=listen, daemon=True).start()
        while (received := jobs.get()) is not None:
            connection.send(perform(received))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
