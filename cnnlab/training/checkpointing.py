"""What an interrupted training goes on from: all that its next epoch depends on, in one file, whole or not there.

Keras's own BackupAndRestore writes in place, and neither the state of random layers nor that of callbacks.
"""

import contextlib
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from cnnlab.errors import LabError, first_line, reading
from cnnlab.training.callbacks import Lookahead
from cnnlab.utils.files import atomic_write
from cnnlab.utils.log import log

FORMAT = 1  # another one cannot be gone on from
# What our own callbacks know of the epochs before; of SwapEMAWeights see `Keeper`.
KNOWN = {
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "best_weights", "stopped_epoch", "wait"),
    keras.callbacks.ReduceLROnPlateau: ("best", "cooldown_counter", "wait"),
    Lookahead: ("slow",),
}
ARRAYS = ("best_weights", "slow")


@dataclass(frozen=True)
class Found:
    """What a file held.

    Attributes:
        about: what `Checkpoint.about` was.
        progress: `history` by metric of all epochs that were done, `stages` that had ended, whether the present one was
            `stopped` by its callbacks, `seconds` of the training and `stage_seconds` of the stage, `callbacks`.
        arrays: lists by name: the `variables` of what is fitted, random layers' too, those of the `optimizer`, the
            weights `before` a second stage, and what callbacks keep.
    """

    about: dict
    progress: dict
    arrays: dict[str, list[np.ndarray]]

    @property
    def epochs(self) -> int:
        """How many were done."""
        return len(self.progress["history"]["loss"])


@dataclass
class Checkpoint:
    """The file that a training is kept in.

    Attributes:
        file: where it is; its folder is made when it is first written.
        about: what is to be known of the training by whoever finds the file, as JSON has it.
        every: seconds; at the end of an epoch it is written if as many have passed since the last time, or the start.
        found: what the training goes on from, `None` for one that begins.
    """

    file: Path
    about: dict
    every: float
    found: Found | None = None
    last: float = field(default_factory=time.monotonic)
    refused: bool = False

    def is_due(self) -> bool:
        return time.monotonic() - self.last >= self.every

    def write(self, progress, arrays) -> None:
        """Write the file whole, or leave the one before; where the disk refuses, say so once, and go on."""
        try:
            _write(self.file, {"format": FORMAT, "about": self.about, "progress": progress}, arrays)
        except OSError as error:
            if not self.refused:
                log.warning(
                    f"no checkpoint in '{self.file.parent}': {first_line(error)}. The training goes on, and "
                    "an interrupted one would begin anew, or where the last checkpoint was."
                )
            self.refused = True
        self.last = time.monotonic()

    def remove(self) -> None:
        """Remove the file: nothing is left to go on with."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)


def _write(file, facts, arrays):
    file.parent.mkdir(parents=True, exist_ok=True)
    flat = {f"{name}.{i}": _plain(array) for name, some in arrays.items() for i, array in enumerate(some)}
    with atomic_write(file) as part:
        np.savez(part, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **flat)


def _plain(array):
    """The array as NumPy can write it without pickles: it has no bfloat16 of its own."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def read(file) -> Found:
    """What a file holds; nothing in it is run.

    Raises:
        LabError: it is damaged, or of another version.
        OSError: it cannot be read.
    """
    with reading(f"'{file}' to be a checkpoint", "Remove it, and train from the beginning."):
        with np.load(file, allow_pickle=False) as stored:
            flat = {name: stored[name] for name in stored.files}  # compared with their checksums
        facts = json.loads(flat.pop("facts").tobytes())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, not {FORMAT}")
        arrays = {}
        for name, array in flat.items():
            arrays.setdefault(name.rpartition(".")[0], []).append(array)
        found = Found(facts["about"], facts["progress"], arrays)
        found.epochs  # noqa: B018  that it is there
    return found


class Keeper(keras.callbacks.Callback):
    """Writes the checkpoint of a `fit` at the end of its epochs, and puts back what it was at its begin.

    It comes behind all callbacks that it keeps.

    Args:
        checkpoint: a `Checkpoint`.
        history: metrics of the epochs before this `fit`.
        stages: of those that have ended, dicts.
        before: weights before a second stage, arrays.
        begins: of the training and of the stage, on the clock of `time.perf_counter`.

    Attributes:
        kept: the training's own callbacks, in an order that is the same when it goes on.
    """

    kept = ()

    def __init__(self, checkpoint, history, stages, before, begins):
        super().__init__()
        self.checkpoint = checkpoint
        self.history = {name: list(values) for name, values in history.items()}
        self.stages, self.before, self.begins = stages, before, begins

    def on_train_begin(self, logs=None):
        if found := self.checkpoint.found:
            self.model.optimizer.build(self.model.trainable_variables)
            for callback in self.kept:
                if isinstance(callback, keras.callbacks.SwapEMAWeights):
                    callback.on_epoch_end(-1)  # the averages are in the model at an epoch's end, and it knows that
            self._put_back(found)
            self.checkpoint.found = None
            found.arrays.clear()  # as large as the model and its optimizer

    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        if self.checkpoint.is_due() and math.isfinite(logs["loss"]):
            seconds, stage_seconds = (time.perf_counter() - began for began in self.begins)
            arrays = {
                "variables": [keras.ops.convert_to_numpy(v) for v in self.model.variables],
                "optimizer": [keras.ops.convert_to_numpy(v) for v in self.model.optimizer.variables],
                "before": self.before,
            }
            states = [self._state(i, callback, arrays) for i, callback in enumerate(self.kept)]
            progress = {
                **{"history": self.history, "stages": self.stages, "stopped": bool(self.model.stop_training)},
                **{"seconds": seconds, "stage_seconds": stage_seconds, "callbacks": states},
            }
            self.checkpoint.write(progress, arrays)

    def _state(self, i, callback, arrays):
        """What a callback knows, without its arrays, which join the others."""
        state = {name: getattr(callback, name) for name in KNOWN.get(type(callback), ())}
        for name in ARRAYS:
            if state.get(name) is not None:
                arrays[f"callback{i}.{name}"] = [keras.ops.convert_to_numpy(value) for value in state[name]]
                state[name] = True
        return state

    def _put_back(self, found):
        for name, of in (("variables", self.model), ("optimizer", self.model.optimizer)):
            variables = of.variables
            arrays = found.arrays.get(name, [])
            if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
                raise LabError(
                    f"Expected '{self.checkpoint.file}' to be a checkpoint of this model. Received: one with other "
                    f"{name}. Train from the beginning, with --restart."
                )
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array.view(keras.ops.convert_to_numpy(variable).dtype))
        for i, (callback, state) in enumerate(zip(self.kept, found.progress["callbacks"], strict=True)):
            for name, value in state.items():
                arrays = found.arrays.get(f"callback{i}.{name}", [])
                setattr(callback, name, arrays if name in ARRAYS and value else value)
