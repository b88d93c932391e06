"""Log metrics by epoch with MLflow's autologging around each fit, then log again the epochs the store lacks."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import Metric

from cnnlab.tracking.mlflow_internals import keras_autologging_alone, nothing_logged_twice
from cnnlab.utils.log import log

if TYPE_CHECKING:
    import keras

History = Mapping[str, list[float]]  # metrics by epoch, as Keras gives them
Logged = dict[str, dict[int, float]]  # what the store has of them: values by name and step


@contextmanager
def autologging() -> Iterator[list[keras.callbacks.Callback]]:
    """Turn on MLflow's Keras autologging for the `fit` inside; we log models and data sets, once and whole."""
    with keras_autologging_alone(), nothing_logged_twice():
        yield []


def fits_of_a_run(logged: Logged | None = None) -> Callable[[], AbstractContextManager[list[keras.callbacks.Callback]]]:
    """Return a function that makes a context for each `fit` of the active run; it gives further callbacks for the fit.

    MLflow autologs one `fit` a run: a second one would change params. Of later ones, and of a resumed run, the metrics
    alone are logged, at the epochs that they continue with.

    Args:
        logged: of a resumed run, what `logged_history` gave: nothing is logged at a step twice.
    """
    contexts = iter([autologging] if logged is None else ())
    return lambda: next(contexts, functools.partial(_metrics_alone, logged or {}))()  # noqa: PLW0108  another one each


@contextmanager
def _metrics_alone(logged: Logged) -> Iterator[list[keras.callbacks.Callback]]:
    import keras

    def log_epoch(epoch: int, logs: dict[str, float]) -> None:
        new = {name: value for name, value in logs.items() if epoch not in logged.get(name, ())}
        with contextlib.suppress(mlflow.MlflowException):  # no reason to lose the training
            mlflow.log_metrics(new, step=epoch, synchronous=False)

    yield [keras.callbacks.LambdaCallback(on_epoch_end=log_epoch)]


def complete_history(run_id: str, history: History) -> None:
    """Log again what the store missed of the metrics by epoch, and warn how many epochs there were.

    The server was unavailable, or the disk full, for a while.
    """
    if epochs := _send_missing(run_id, history):
        log.warning(f"the store had missed {epochs} of the epochs; their metrics were sent again.")


def logged_history(run_id: str, history: History) -> Logged:
    """Send the store what it missed of a resumed run's `history`; return `{name: {step: value}}` that it has then."""
    _send_missing(run_id, history)
    client = mlflow.MlflowClient()
    return {name: {m.step: m.value for m in client.get_metric_history(run_id, name)} for name in history}


def difference_to_logged(logged: Logged, history: History) -> float:
    """Return the largest difference of a history to what the store had of its epochs, trained the first time."""
    return max(
        (abs(values[step] - value) for name, values in history.items() for step, value in logged.get(name, {}).items()),
        default=0.0,
    )


def _send_missing(run_id: str, history: History) -> int:
    """Log what the store does not have of a history; return the number of epochs that were missing."""
    client = mlflow.MlflowClient()
    with contextlib.suppress(mlflow.MlflowException):  # of values that were lost on the way
        mlflow.flush_async_logging()
    missing = []
    for name, values in history.items():
        known = {metric.step for metric in client.get_metric_history(run_id, name)}
        missing += [
            Metric(name, float(value), int(time.time() * 1000), step)
            for step, value in enumerate(values)
            if step not in known
        ]
    client.log_batch(run_id, metrics=missing)
    return len({metric.step for metric in missing})
