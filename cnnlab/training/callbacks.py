"""Keras callbacks of trainings: `Lookahead`, `StopWhereNotFinite`, `BestSoFar`, and `LearningRate`, which logs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cnnlab.training.optimizers import LOOKAHEAD_STEPS, learning_rate_of
from cnnlab.training.runtime import to_numpy


class Lookahead(keras.callbacks.Callback):
    """Average the weights every 5 steps with those of the time before (arXiv:1907.08610), the later the more.

    airbench does the same (arXiv:2404.00498). Keras's own average with `ema_overwrite_frequency` has one decay from
    start to end: a prototype of resnet9 named 88.2 % of the validation images with it, 89.5 % with this.

    Args:
        decay: share of the earlier weights at the training's end; it rises with the third power of the steps done.
        steps: number of optimizer steps of the whole training.

    Attributes:
        slow: the weights after the last averaging ("slow weights"), tensors in the order of the averaged variables.
    """

    model: keras.Model  # pyright: ignore[reportIncompatibleMethodOverride]  Keras's property has no type
    params: dict[str, Any]

    def __init__(self, decay: float, steps: int) -> None:
        super().__init__()
        self.decay, self.steps = decay, steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # The statistics of BatchNormalization belong to these weights; integers are counters.
        self.averaged: list[Any] = [w for w in self.model.weights if keras.backend.is_float_dtype(w.dtype)]
        self.slow: list[Any] = [keras.ops.copy(w) for w in self.averaged]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Keras calls this after every 5 steps, but after each one in a training on several devices.
        if (batch + 1) % LOOKAHEAD_STEPS and batch + 1 < self.params["steps"]:
            return
        done = float(to_numpy(self.model.optimizer.iterations)) / self.steps
        decay = self.decay * done**3
        self.slow = [decay * slow + (1 - decay) * w for slow, w in zip(self.slow, self.averaged, strict=True)]
        for weights, slow in zip(self.averaged, self.slow, strict=True):
            weights.assign(slow)


class StopWhereNotFinite(keras.callbacks.TerminateOnNaN):
    """Stop a training at the step whose loss is NaN or infinite, or after the epoch whose validation loss is."""

    model: keras.Model  # pyright: ignore[reportIncompatibleMethodOverride]  Keras's property has no type

    # `fit` always gives the logs.
    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not np.isfinite(logs["val_loss"]):
            self.model.stop_training = True


class BestSoFar(keras.callbacks.Callback):
    """Let the early stopping in front of it count earlier epochs, the best of whose weights the model begins with.

    Args:
        early_stopping: by `val_loss`.
        losses: `val_loss` of the earlier epochs.
    """

    model: keras.Model  # pyright: ignore[reportIncompatibleMethodOverride]  Keras's property has no type

    def __init__(self, early_stopping: keras.callbacks.EarlyStopping, losses: Sequence[float]) -> None:
        super().__init__()
        self.early_stopping: keras.callbacks.EarlyStopping = early_stopping
        self.losses: Sequence[float] = losses

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        best = min(self.losses)
        facts = {"best": best, "best_epoch": self.losses.index(best), "best_weights": self.model.get_weights()}
        vars(self.early_stopping).update(facts)


class LearningRate(keras.callbacks.Callback):
    """Add the learning rate at the end of an epoch to its logs; where layers have several, that of the head."""

    model: keras.Model  # pyright: ignore[reportIncompatibleMethodOverride]  Keras's property has no type

    # `fit` always gives the logs.
    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        logs["learning_rate"] = learning_rate_of(self.model.optimizer)
