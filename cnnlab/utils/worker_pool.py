"""Hand out jobs to workers and take back their results, whoever the workers are.

Workers are this process (`ThisProcess`), processes on this machine (`local_workers`) or a Ray cluster (`ray_workers`).
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cnnlab.errors import LabError
from cnnlab.utils.log import log

LOSSES = 3  # workers that a job may take down with it and still be tried again


@dataclass(frozen=True)
class Job:
    """A call that a worker makes: its `name` for people, a `function` that can be imported, and its `arguments`."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """The result of a job."""

    job: Job  # that ended
    value: Any = None  # that its function returned
    error: str | None = None  # the traceback of the exception that it raised
    lost: str | None = None  # how its worker was lost
    cause: Exception | None = None  # the exception itself, if it was raised in this process

    def result(self) -> Any:
        """Return the value, or raise the job's exception, as a `LabError` where it ran elsewhere."""
        if self.cause:
            raise self.cause
        if self.error:
            raise LabError(
                f"Expected {self.job.name} to end well. Received: {last_line(self.error)}. Correct it, and the same "
                "command goes on."
            ) from RuntimeError(self.error)
        return self.value


class Workers:
    """What runs jobs."""

    def room(self) -> int:
        """Return how many jobs run at a time, at least one."""
        return 1

    def share(self, value: Any) -> Any:
        """Return what stands for a large value in the arguments of many jobs."""
        return value

    def start(self, job: Job) -> None:
        """Start a job."""
        raise NotImplementedError

    def next_result(self) -> JobResult | None:
        """Wait for a job that was started; return `None` after a while, so that the caller can ask for `room` again."""
        raise NotImplementedError

    def close(self) -> None:
        """End the workers, whatever they are at."""


def last_line(error: str) -> str:
    """Return the last line of a traceback, without the exception's module."""
    name, colon, text = error.strip().splitlines()[-1].partition(": ")
    return (text if colon else name).rstrip(".")


def run_jobs(ask: Callable[[], Job | None], workers: Workers, ahead: int = 1) -> Iterator[JobResult]:
    """Hand out jobs as long as there are some, and yield the result of each as it ends, in whatever order.

    A job whose worker is lost is tried again with a warning, and failed when it has lost more than `LOSSES` workers.

    Args:
        ask: returns the next job, or `None` where there is none now; it is called again whenever a job has ended.
        workers: run the jobs.
        ahead: this many times as many jobs as there is room for are started, so that no worker waits for its next one.
    """
    losses: collections.Counter[str] = collections.Counter()
    under_way = 0
    while True:
        while under_way < ahead * workers.room() and (job := ask()):
            workers.start(job)
            under_way += 1
        if not under_way:
            return
        result = workers.next_result()
        if result is None:
            continue
        if result.lost:
            job = result.job
            losses[job.name] += 1
            again = losses[job.name] <= LOSSES
            log.warning(
                f"{job.name} lost its worker: {result.lost}; "
                + (f"trying it again ({losses[job.name]} of {LOSSES})." if again else "not trying it again.")
            )
            if again:
                workers.start(job)
                continue
            error = f"LabError: each of {losses[job.name]} workers was lost, the last one: {result.lost}"
            result = JobResult(job, error=error)
        under_way -= 1
        yield result


class SharedArgument(int):
    """The number of a shared value, in whose place it stands in the arguments of a job."""


def run_pickled(pickled: bytes, shared: Sequence[Any] = ()) -> tuple[Any, str | None]:
    """Run a job in a worker, and return the `value` and the `error` of its result; `shared` are its shared arguments.

    It is unpickled here, when the worker is ready to import the modules of its function.
    """
    try:
        job = pickle.loads(pickled)
        return job.function(*(shared[a] if isinstance(a, SharedArgument) else a for a in job.arguments)), None
    except Exception:
        return None, traceback.format_exc()


class ThisProcess(Workers):
    """Workers that run one job at a time in this process."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Job] = collections.deque()

    def start(self, job: Job) -> None:
        self.waiting.append(job)

    def next_result(self) -> JobResult:
        job = self.waiting.popleft()
        try:
            return JobResult(job, job.function(*job.arguments))
        except Exception as error:
            return JobResult(job, error=traceback.format_exc(), cause=error)


_current: contextvars.ContextVar[Workers] = contextvars.ContextVar("workers")


def current_workers() -> Workers:
    """Return the workers that compute the features of frozen layers: those of `use_workers`, else this process."""
    return _current.get(None) or ThisProcess()


@contextlib.contextmanager
def use_workers(workers: Workers) -> Iterator[None]:
    """Let these workers compute the features of frozen layers inside of this context."""
    token = _current.set(workers)
    try:
        yield
    finally:
        _current.reset(token)
