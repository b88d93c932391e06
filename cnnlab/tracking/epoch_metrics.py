"""Metrics by epoch: MLflow's autologging around each fit, and what the store missed of them."""

import contextlib
import functools
import time
from contextlib import contextmanager

import mlflow

from cnnlab.tracking.mlflow_internals import keras_autologging_alone, no_validation_copies
from cnnlab.utils.log import log


@contextmanager
def autologging():
    """MLflow's Keras autologging for the `fit` inside; models and data sets are logged by us, once and whole."""
    with keras_autologging_alone(), no_validation_copies():
        yield []


def fits_of_a_run(logged=None):
    """A maker of contexts, one for each `fit` of the active run, that give further callbacks for it.

    MLflow autologs one `fit` a run: a second one would change params. Of later ones, and of a run that goes on, the
    metrics are logged, at the epochs that they go on with.

    Args:
        logged: of a run that goes on, what `logged_history` gave: nothing is logged at a step twice.
    """
    contexts = iter([autologging] if logged is None else ())
    return lambda: next(contexts, functools.partial(_metrics_alone, logged or {}))()  # noqa: PLW0108  another one each


@contextmanager
def _metrics_alone(logged):
    import keras

    def log(epoch, logs):
        new = {name: value for name, value in logs.items() if epoch not in logged.get(name, ())}
        mlflow.log_metrics(new, step=epoch, synchronous=False)

    yield [keras.callbacks.LambdaCallback(on_epoch_end=log)]


def complete_history(run_id, history) -> None:
    """Log again what the store missed of the metrics by epoch, and warn how many epochs there were.

    The server was unavailable, or the disk full, for a while.
    """
    if epochs := _send_missing(run_id, history):
        log.warning(f"the store had missed {epochs} of the epochs; their metrics were sent again.")


def logged_history(run_id, history) -> dict:
    """`{name: {step: value}}` that the store has of a run that goes on, once it was sent what it lost of `history`."""
    _send_missing(run_id, history)
    client = mlflow.MlflowClient()
    return {name: {m.step: m.value for m in client.get_metric_history(run_id, name)} for name in history}


def difference_to_logged(logged, history) -> float:
    """The largest difference of a history to what the store had already of its epochs, trained the first time."""
    return max(
        (abs(values[step] - value) for name, values in history.items() for step, value in logged.get(name, {}).items()),
        default=0.0,
    )


def _send_missing(run_id, history):
    """Log what the store does not have of a history; returns the number of epochs that there were."""
    client = mlflow.MlflowClient()
    with contextlib.suppress(mlflow.MlflowException):  # of values that were lost on the way
        mlflow.flush_async_logging()
    missing = []
    for name, values in history.items():
        there = {metric.step for metric in client.get_metric_history(run_id, name)}
        missing += [
            mlflow.entities.Metric(name, float(value), int(time.time() * 1000), step)
            for step, value in enumerate(values)
            if step not in there
        ]
    for i in range(0, len(missing), 1000):
        client.log_batch(run_id, metrics=missing[i : i + 1000])
    return len({metric.step for metric in missing})
