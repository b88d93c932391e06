"""Many picture files to one uint8 array, on all cores.

The workers are this module again (`work`) and import Pillow only, which is why NumPy is imported in functions.
Threads would not do: for a small picture Pillow holds Python's lock for longer than it decodes. multiprocessing runs
the user's script again in every worker, and joblib's workers take seconds to start.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from cnnlab.data.images import decode
from cnnlab.errors import LabError

CHUNK = 100  # images a task at most
PATIENCE, WORTH = 0.1, 0.5  # seconds: decode here that long, then start workers if that much is left
WORKER = "import sys; sys.path[:] = sys.argv[1:]; from cnnlab.data.parallel import work; work()"


def decode_files(files, image_size):
    """All files as `(N, image_size, image_size, 3) uint8`, in order, on all cores, with a progress bar."""
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    images = np.empty((len(files), image_size, image_size, 3), np.uint8)
    flat, done, console = images.reshape(-1), 0, Console(stderr=True)
    bar = Progress(console=console, disable=not console.is_terminal)
    with bar, contextlib.closing(_decode_all(list(files), image_size)) as parts:
        task = bar.add_task(f"Decoding {len(files):,} images", total=images.size)
        for part in parts:
            flat[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
            bar.update(task, completed=done)
    return images


def _decode_chunk(files, image_size) -> bytes:
    # Below each other in one picture: exporting the pixels of many at once is several times as fast as one by one.
    column = Image.new("RGB", (image_size, image_size * len(files)))
    for i, file in enumerate(files):
        column.paste(decode(file, image_size), (0, image_size * i))
    return column.tobytes()


def _decode_all(files, image_size):
    """Yield the pixels of a few files at a time: first from here, then, if much is left, from workers."""
    start = time.perf_counter()
    for done, file in enumerate(files):
        spent = time.perf_counter() - start
        if spent > PATIENCE and spent / done * (len(files) - done) > WORTH:
            yield from _decode_in_workers(files[done:], image_size)
            return
        yield decode(file, image_size).tobytes()


def _decode_in_workers(files, image_size):
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = min(CHUNK, len(files) // (4 * count) + 1)  # a few photographs are shared out too
    chunks = [files[i : i + size] for i in range(0, len(files), size)]
    workers, idle = [], queue.SimpleQueue()

    def ask_worker(chunk):
        worker = idle.get()
        try:
            pickle.dump((chunk, image_size), worker.stdin)
            worker.stdin.flush()
            reply = pickle.load(worker.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise LabError("Decoding failed: a worker process ended early. Is there enough memory?") from error
        finally:
            idle.put(worker)
        if isinstance(reply, Exception):
            raise reply
        return reply

    # Each thread only waits for a worker. In a session of their own, the workers don't get the terminal's Ctrl-C.
    threads = ThreadPoolExecutor(count)
    try:
        for _ in range(min(count, len(chunks))):
            command = [sys.executable, "-c", WORKER, *sys.path]
            pipe = subprocess.PIPE
            workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True))
            idle.put(workers[-1])
        yield from threads.map(ask_worker, chunks)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()  # on an error or Ctrl-C it may be busy; a thread that waits for it reads the end of its pipe
        threads.shutdown()
        for worker in workers:
            worker.communicate()


def work():
    """Answer requests on stdin with pixels, or the error, on stdout, until the other end closes."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            request = pickle.load(sys.stdin.buffer)
            try:
                reply = _decode_chunk(*request)
            except Exception as error:
                reply = error
            pickle.dump(reply, sys.stdout.buffer)
            sys.stdout.buffer.flush()
