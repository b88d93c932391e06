"""Checkpoints: one file with all that the next epoch depends on, from which an interrupted training is resumed.

`Progress` is how far a training is, `CheckpointCallback` writes it to a `Checkpoint` and restores it, `read` gives the
`StoredCheckpoint` in a file. Keras's own BackupAndRestore writes in place, so that a kill can leave half a file, and
saves neither the state of random layers nor that of callbacks.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.errors import LabError, first_line, reading
from cnnlab.training.callbacks import Lookahead
from cnnlab.training.runtime import to_numpy
from cnnlab.training.stages import StageResult
from cnnlab.utils.files import atomic_write
from cnnlab.utils.log import log

FORMAT = 1  # of the file; no other one is read
# The attributes of callbacks that depend on earlier epochs; `CheckpointCallback` restores SwapEMAWeights by a call.
CALLBACK_STATE: Mapping[type[keras.callbacks.Callback], tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "best_weights", "stopped_epoch", "wait"),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    Lookahead: ("slow",),
}
ARRAY_ATTRIBUTES = ("best_weights", "slow")  # those of them that are lists of arrays
WEIGHTS_BEFORE_STAGE = "before"  # their name in the file
MOST_STATE = 2**26  # bytes of a finished training's variables that are kept

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class StoredCheckpoint:
    """What the file of a checkpoint holds."""

    about: dict[str, Any]  # `Checkpoint.about` of the training that wrote it
    # `history`, the metrics of all finished epochs by name; `stages`, the results of finished stages; `stopped`,
    # whether callbacks have ended the present stage; `seconds` of the training and `stage_seconds` of the present stage
    # so far; `callbacks`, their attributes.
    progress: dict[str, Any]
    # Lists of arrays by name: `variables` of the trained model (those of random layers too) and of its `optimizer`, the
    # weights `before` the second stage, and the arrays of callbacks.
    arrays: dict[str, Arrays]

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.progress["history"]["loss"])


@dataclass
class Progress:
    """How far a training is."""

    history: dict[str, list[float]] = field(default_factory=dict)  # metrics of the finished epochs by name
    stages: list[StageResult] = field(default_factory=list)  # results of the finished stages
    stopped: bool = False  # whether callbacks have ended the present stage before its last epoch
    # Weights of the trained model before the second stage; empty in the first one.
    weights_before_stage: Arrays = field(default_factory=list)
    # When the training began, on the clock of `time.perf_counter`.
    started: float = field(default_factory=time.perf_counter)
    stage_started: float = field(default_factory=time.perf_counter)  # when its present stage began

    @classmethod
    def from_checkpoint(cls, stored: StoredCheckpoint | None) -> Progress:
        """Return the progress of a stored checkpoint, or that of a new training where there is none."""
        if stored is None:
            return cls()
        facts, now = stored.progress, time.perf_counter()
        return cls(
            facts["history"],
            [StageResult(**result) for result in facts["stages"]],
            facts["stopped"],
            stored.arrays.get(WEIGHTS_BEFORE_STAGE, []),
            started=now - facts["seconds"],
            stage_started=now - facts["stage_seconds"],
        )

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.history.get("loss", ()))

    @property
    def epochs_before_stage(self) -> int:
        """The number of epochs of the finished stages."""
        return sum(result.epochs for result in self.stages)

    def add_history(self, history: Mapping[str, list[float]]) -> None:
        """Append the metrics of further epochs."""
        for name, values in history.items():
            self.history[name] = self.history.get(name, []) + values

    def end_stage(self, result: StageResult) -> None:
        """Add the result of the stage that has ended, and start the clock of the next one."""
        self.stages.append(result)
        self.stopped, self.stage_started = False, time.perf_counter()


@dataclass
class Checkpoint:
    """Where and how often the checkpoint of a training is written."""

    file: Path  # its path; the folder is made when it is first written
    about: dict[str, Any]  # JSON values that identify the training for whoever reads the file
    # Seconds; it is written at the end of an epoch if as many have passed since the last time, or the start.
    every: float
    stored: StoredCheckpoint | None = None  # the checkpoint that the training resumes from; `None` for one that begins
    # When it was last written, or else made, on the clock of `time.monotonic`.
    last_written: float = field(default_factory=time.monotonic)
    warned: bool = False  # whether the user knows that it cannot be written

    def is_due(self) -> bool:
        """Return whether `every` seconds have passed since it was last written."""
        return time.monotonic() - self.last_written >= self.every

    def write(self, progress: dict[str, Any], arrays: Mapping[str, Arrays]) -> None:
        """Replace the file; where the disk refuses, leave the one before and warn once. See `StoredCheckpoint`."""
        try:
            _write(self.file, {"format": FORMAT, "about": self.about, "progress": progress}, arrays)
        except OSError as error:
            if not self.warned:
                log.warning(
                    f"no checkpoint in '{self.file.parent}': {first_line(error)}. The training goes on, and "
                    "an interrupted one would begin anew, or where the last checkpoint was."
                )
            self.warned = True
        self.last_written = time.monotonic()

    def remove(self) -> None:
        """Remove the file, so that no training resumes from it."""
        with contextlib.suppress(OSError):
            self.file.unlink()


def _write(file: Path, facts: dict[str, Any], arrays: Mapping[str, Arrays]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    flat: dict[str, Any] = {f"{name}.{i}": array for name, some in arrays.items() for i, array in enumerate(some)}
    # bfloat16 as integers with the same bits: NumPy has no such type, and would pickle the array.
    flat = {name: a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a for name, a in flat.items()}
    with atomic_write(file) as opened:
        np.savez(opened, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **flat)


def read(file: Path) -> StoredCheckpoint:
    """Read the file of a checkpoint; no code in it is run.

    Raises:
        LabError: the file is damaged, or of another version.
        OSError: the file cannot be read.
    """
    with reading(f"'{file}' to be a checkpoint", "Remove it, and train from the beginning."):
        with np.load(file, allow_pickle=False) as opened:
            flat = {name: opened[name] for name in opened.files}  # compares them with their checksums
        facts = json.loads(flat.pop("facts").tobytes())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, not {FORMAT}")
        arrays: dict[str, Arrays] = {}
        for name, array in flat.items():
            arrays.setdefault(name.rpartition(".")[0], []).append(array)
        stored = StoredCheckpoint(facts["about"], facts["progress"], arrays)
        stored.epochs  # noqa: B018  fails here where the history is missing
    return stored


def state_writer(model: keras.Model, progress: Progress) -> Callable[[Path], None] | None:
    """Return a function that writes what a finished training of one stage is continued from, as `read` reads it.

    Args:
        model: that was fitted.
        progress: of the training.

    Returns:
        `None` where its variables are larger than `MOST_STATE`.
    """
    now = time.perf_counter()
    facts = {"history": progress.history, "stages": [], "stopped": False, "callbacks": []}
    facts |= {"seconds": now - progress.started, "stage_seconds": now - progress.stage_started}
    owners: dict[str, Any] = {"variables": model, "optimizer": model.optimizer}
    if sum(math.prod(v.shape) * 4 for owner in owners.values() for v in owner.variables) > MOST_STATE:
        return None

    def write(file: Path) -> None:
        arrays = {name: [to_numpy(v) for v in owner.variables] for name, owner in owners.items()}
        _write(file, {"format": FORMAT, "about": {}, "progress": facts}, arrays)

    return write


def restore_variables(model: keras.Model, stored: StoredCheckpoint, what: str) -> None:
    """Give a compiled model and its optimizer the variables of a checkpoint, which `what` names in an error.

    Raises:
        LabError: they are of another model.
    """
    model.optimizer.build(model.trainable_variables)
    for name, owner in (("variables", model), ("optimizer", model.optimizer)):
        variables, arrays = owner.variables, stored.arrays.get(name, [])
        if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
            raise LabError(
                f"Expected {what} to be a checkpoint of this model. Received: one with other {name}. "
                "Train from the beginning, with restart."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array.view(to_numpy(variable).dtype))


class CheckpointCallback(keras.callbacks.Callback):
    """Restore a training from its stored checkpoint when a `fit` begins, and write the checkpoint after epochs.

    It has to stand behind the callbacks whose state it stores.

    Args:
        checkpoint: where to write, and the stored checkpoint to restore, if any.
        progress: how far the training is before this `fit`.
        callbacks: the callbacks of types in `CALLBACK_STATE` and SwapEMAWeights, always in the same order.
    """

    model: keras.Model  # pyright: ignore[reportIncompatibleMethodOverride]  Keras's property has no type

    def __init__(
        self, checkpoint: Checkpoint, progress: Progress, callbacks: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        super().__init__()
        self.checkpoint, self.progress, self.callbacks = checkpoint, progress, callbacks
        self.history: dict[str, list[float]] = {name: list(values) for name, values in progress.history.items()}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if stored := self.checkpoint.stored:
            self.model.optimizer.build(self.model.trainable_variables)
            for callback in self.callbacks:
                if isinstance(callback, keras.callbacks.SwapEMAWeights):
                    callback.on_epoch_end(-1)  # tells it that the model holds the averages, as at any epoch's end
            restore_variables(self.model, stored, f"'{self.checkpoint.file}'")
            self._restore_callbacks(stored)
            self.checkpoint.stored = None
            stored.arrays.clear()  # frees as much memory as the model and its optimizer take

    # `fit` always gives the logs.
    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        if self.checkpoint.is_due():
            now = time.perf_counter()
            arrays = {
                "variables": [to_numpy(v) for v in self.model.variables],
                "optimizer": [to_numpy(v) for v in self.model.optimizer.variables],
                WEIGHTS_BEFORE_STAGE: self.progress.weights_before_stage,
            }
            states = [self._state_of(i, callback, arrays) for i, callback in enumerate(self.callbacks)]
            progress = {
                **{"history": self.history, "stages": [asdict(result) for result in self.progress.stages]},
                **{"stopped": bool(self.model.stop_training), "callbacks": states},
                **{"seconds": now - self.progress.started, "stage_seconds": now - self.progress.stage_started},
            }
            self.checkpoint.write(progress, arrays)

    def _state_of(self, i: int, callback: keras.callbacks.Callback, arrays: dict[str, Arrays]) -> dict[str, Any]:
        """Return the attributes of the i-th callback; those that are arrays join `arrays`, and are `True` here."""
        state = {name: getattr(callback, name) for name in CALLBACK_STATE.get(type(callback), ())}
        for name in ARRAY_ATTRIBUTES:
            if state.get(name) is not None:
                arrays[f"callback{i}.{name}"] = [to_numpy(value) for value in state[name]]
                state[name] = True
        return state

    def _restore_callbacks(self, stored: StoredCheckpoint) -> None:
        """Give the callbacks what they had when the checkpoint was written."""
        for i, (callback, state) in enumerate(zip(self.callbacks, stored.progress["callbacks"], strict=True)):
            for name, value in state.items():
                arrays = stored.arrays.get(f"callback{i}.{name}", [])
                setattr(callback, name, arrays if name in ARRAY_ATTRIBUTES and value else value)
