"""Jobs handed out to workers and taken back as they end, whoever the workers are: this process (`Here`), others on this
machine (`processes`), a cluster (`on_ray`).

Workers have `room()`, the jobs that they take at a time, at least one; `share(value)`, what stands for a large value in
the arguments of many jobs; `start(job)`; `next_ended()`, which waits for one that was started and gives its `Ended`, or
`None` after a while, so that who waits can look whether there is more room by now; and `close()`, which ends them with
whatever they are at.
"""

import collections
import contextlib
import contextvars
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from cnnlab.errors import LabError
from cnnlab.utils.log import log

LOSSES = 3  # workers that a job may take down with it and still be tried again


@dataclass(frozen=True)
class Job:
    """A call to be made by some worker: its `name` for people, a `function` that can be imported, its `arguments`."""

    name: str
    function: Callable
    arguments: tuple = ()


@dataclass(frozen=True)
class Ended:
    """How a job ended: its `value`; or the traceback of its `error`, and its `cause` if that was in this process; or in
    which way its worker was `lost`.
    """

    job: Job
    value: object = None
    error: str | None = None
    lost: str | None = None
    cause: Exception | None = None

    def result(self):
        """The value.

        Raises:
            LabError: there is none; in this process what went wrong.
        """
        if self.cause:
            raise self.cause
        if self.error:
            raise LabError(
                f"Expected {self.job.name} to end well. Received: {last_line(self.error)}. Correct it, and the same "
                "command goes on."
            ) from RuntimeError(self.error)
        return self.value


def last_line(error) -> str:
    """What a traceback ends with, without the exception's module."""
    name, colon, text = error.strip().splitlines()[-1].partition(": ")
    return (text if colon else name).rstrip(".")


def spread(ask, workers, ahead=1):
    """Hand out jobs as long as there are some, and yield an `Ended` for each as it ends, in whatever order.

    A job whose worker is lost is tried again, which is said, and is an error after `LOSSES` of them.

    Args:
        ask: gives the next `Job`, or `None` where there is none now; it is asked again whenever one has ended.
        workers: as above.
        ahead: times as many jobs as there is room for are started, so that a worker need not wait for its next one.
    """
    losses, under_way = collections.Counter(), 0
    while True:
        while under_way < ahead * workers.room() and (job := ask()):
            workers.start(job)
            under_way += 1
        if not under_way:
            return
        ended = workers.next_ended()
        if ended is None:
            continue
        if ended.lost:
            job = ended.job
            losses[job.name] += 1
            again = losses[job.name] <= LOSSES
            log.warning(
                f"{job.name} lost its worker: {ended.lost}; "
                + (f"trying it again ({losses[job.name]} of {LOSSES})." if again else "not trying it again.")
            )
            if again:
                workers.start(job)
                continue
            ended = Ended(
                job, error=f"LabError: each of {losses[job.name]} workers was lost, the last one: {ended.lost}"
            )
        under_way -= 1
        yield ended


class Shared(int):
    """In the arguments of a job, the number of a shared value that comes beside it."""


def perform(pickled, shared=()):
    """Make a job's call, in whatever worker this is: `(value, error)` of its `Ended`.

    Args:
        pickled: the `Job`. What it names is imported here, when the worker is ready for it.
        shared: the values that `Shared` arguments stand for.
    """
    try:
        job = pickle.loads(pickled)
        return job.function(*(shared[a] if isinstance(a, Shared) else a for a in job.arguments)), None
    except Exception:
        return None, traceback.format_exc()


class Here:
    """The worker that is always there: this process, one job at a time."""

    def __init__(self):
        self.waiting = collections.deque()

    def room(self):
        return 1

    def share(self, value):
        return value

    def start(self, job):
        self.waiting.append(job)

    def next_ended(self):
        job = self.waiting.popleft()
        try:
            return Ended(job, job.function(*job.arguments))
        except Exception as error:
            return Ended(job, error=traceback.format_exc(), cause=error)

    def close(self):
        self.waiting.clear()


_helping = contextvars.ContextVar("helping")


def helpers():
    """The workers that the pass through frozen layers is spread over: those of `helped_by`, else this process."""
    return _helping.get(None) or Here()


@contextlib.contextmanager
def helped_by(workers):
    """Passes through frozen layers inside are spread over these workers."""
    token = _helping.set(workers)
    try:
        yield
    finally:
        _helping.reset(token)
