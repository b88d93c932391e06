"""Train on several devices of one machine with the same loss, gradients and metrics as on one device.

`tf.distribute.MirroredStrategy` splits each batch among the devices. Keras averages the means of the shares, which
is wrong when the shares differ in size, and fails when a device gets no images. A batch that does not split evenly
is therefore given whole to every device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cnnlab.data.batching import Batches
from cnnlab.errors import ArgumentError, LabError
from cnnlab.models.layers import member_networks, operations_of
from cnnlab.training.optimizers import compile_like
from cnnlab.training.runtime import to_numpy

CLIP_ARGUMENTS = ("clipnorm", "global_clipnorm", "clipvalue")  # of Keras's optimizers


def devices_for(batch_size: int, number: int | str = 1) -> list[str]:
    """Choose the devices of a training.

    Args:
        batch_size: images of a step, on all devices together.
        number: as in `RunOptions.devices`; "auto" is one device where all GPUs cannot share the batch equally.

    Returns:
        TensorFlow's names of several devices; none for the usual single one.

    Raises:
        ArgumentError: there are fewer devices than asked for, or they cannot share a batch equally.
    """
    if number == 1:
        return []
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    if not isinstance(number, int):  # "auto"
        return gpus if len(gpus) > 1 and batch_size % len(gpus) == 0 else []
    # There are several CPUs only where a program has asked TensorFlow for logical ones, as tests do.
    devices = gpus or [device.name for device in tf.config.list_logical_devices("CPU")]
    if number > len(devices):
        received = f"{number}, and TensorFlow sees {len(gpus) or 'none'}"
        raise ArgumentError(
            "Expected devices to be auto, 1, or at most the number of this machine's GPUs. "
            f"Received: {received}. Use auto."
        )
    if batch_size % number:
        raise ArgumentError(
            f"Expected a batch_size that {number} devices can share equally. Received: {batch_size}. Use another "
            "batch_size, or fewer devices."
        )
    return devices[:number]


def scope_for(batch_size: int, number: int | str = 1) -> AbstractContextManager[Any]:
    """Return the context to build a model in, so that it can be trained on the devices for such batches."""
    names = devices_for(batch_size, number)
    return _strategy(tuple(names)).scope() if names else contextlib.nullcontext()


_strategies: dict[tuple[str, ...], tf.distribute.MirroredStrategy] = {}  # the one of this process, by its devices


def _strategy(names: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Return the strategy for these devices, the same one for all trainings of the process.

    A second strategy would number its sums over devices from the start again, and take the first one's for its own:
    "Shape mismatch in the collective instance" (TensorFlow 2.21).

    Raises:
        LabError: an earlier training of the process was on other devices.
    """
    if names not in _strategies:
        if _strategies:
            first = len(next(iter(_strategies)))
            raise LabError(
                f"Expected {first} devices, as an earlier training of this process had. Received: {len(names)}. "
                "Train in another process."
            )
        _strategies[names] = tf.distribute.MirroredStrategy(names)
    return _strategies[names]


def expect_replicable(model: keras.Model) -> None:
    """Raise `ArgumentError` where a model was built for several devices and `replicate` cannot train it on them."""
    if device_count(model) == 1:
        return
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        received = "one without them, as a subclass with a call() of its own is"
    elif type(model).train_step is not keras.Model.train_step:
        received = f"{type(model).__name__}, which has a train_step of its own"
    elif (members := len(member_networks(model))) > 1:
        received = f"{members} members side by side"
    else:
        return
    raise ArgumentError(
        f"Expected a model of layers between inputs and outputs, to train it on {device_count(model)} devices. "
        f"Received: {received}. Leave devices out."
    )


def device_count(model: keras.Model) -> int:
    """Return how many devices a model was built for."""
    return model.distribute_strategy.num_replicas_in_sync


def scope(model: keras.Model) -> AbstractContextManager[Any]:
    """Return the context to make variables in that belong to a model, its optimizer or its metrics."""
    return model.distribute_strategy.scope() if device_count(model) > 1 else contextlib.nullcontext()


def replicate(part: keras.Model, model: keras.Model) -> ReplicatedModel:
    """Make a compiled model of a part's layers that is fitted on the devices that the model was built for."""
    with scope(model):
        replicated = ReplicatedModel(part.inputs, part.outputs, name=part.name)
        # Several steps are a loop of the graph, in which TensorFlow 2.21 gives the sums over devices no numbers: "You
        # must feed a value for placeholder tensor".
        compile_like(replicated, part, steps_per_execution=1)
    return replicated


def on_one_device(model: keras.Model) -> keras.Model:
    """Make a model of the same layers that predicts on one device; within a strategy each would get a share."""
    return keras.Model(model.inputs, model.outputs, name=model.name)


@contextlib.contextmanager
def single_device_semantics(model: keras.Model) -> Iterator[None]:
    """Make the `fit` inside compute on several devices what it would on one; do nothing for other models.

    BatchNormalization takes the statistics of all devices' images, and gradients are clipped by the norm of their sum.
    The settings that this takes are undone at the end, so that no saved model has them.
    """
    devices = device_count(model)
    settings: list[tuple[Any, str, Any]] = []
    if devices > 1:
        normalizations = (one for one in operations_of(model) if isinstance(one, keras.layers.BatchNormalization))
        settings += [(layer, "synchronized", True) for layer in normalizations]
        for optimizer in _optimizers(model):
            # Keras clips a device's gradients before they are summed; `ReplicatedModel` gives each a share of the sum.
            clips = {name: getattr(optimizer, name) for name in CLIP_ARGUMENTS}
            settings += [(optimizer, name, clip / devices) for name, clip in clips.items() if clip]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _optimizers(model: keras.Model) -> Sequence[keras.optimizers.Optimizer]:
    return getattr(model.optimizer, "optimizers", [model.optimizer])


class ReplicatedModel(keras.Model):
    """A model on several devices whose steps give the loss, gradients and metrics of one device.

    Its data are `ReplicaBatches`.
    """

    def train_step(self, data: tuple[Any, Any, Any]) -> dict[str, Any]:
        x, y, weights = data
        with tf.GradientTape() as tape:
            predictions = self(x, training=True)
            loss = self.compute_loss(x, y, predictions, tf.abs(weights), training=True)  # a share of the mean
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_weights)
        if any(getattr(optimizer, name) for optimizer in _optimizers(self) for name in CLIP_ARGUMENTS):
            replica = tf.distribute.get_replica_context()
            devices = replica.num_replicas_in_sync
            gradients = [gradient / devices for gradient in replica.all_reduce("sum", gradients)]
        self.optimizer.apply(gradients, self.trainable_weights)
        return self._metrics_of_step(loss, x, y, predictions, weights)

    def test_step(self, data: tuple[Any, Any, Any]) -> dict[str, Any]:
        x, y, weights = data
        predictions = self(x, training=False)
        loss = self.compute_loss(x, y, predictions, tf.abs(weights), training=False)
        return self._metrics_of_step(loss, x, y, predictions, weights)

    def _metrics_of_step(self, loss: Any, x: Any, y: Any, predictions: Any, weights: Any) -> dict[str, Any]:
        """Update the metrics by this device's rows, unless they are copies of another device's."""
        are_copies = tf.reduce_any(tf.bitcast(weights, tf.int32) < 0)  # by the sign bit, which -0.0 has too
        rows = tf.where(are_copies, 0, tf.shape(y)[0])
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        mean = loss * tf.distribute.get_replica_context().num_replicas_in_sync
        tracker.update_state(mean, sample_weight=tf.cast(rows, "float32"))
        return self.compute_metrics(x, y[:rows], predictions[:rows], weights[:rows])


class PerReplicaSeeds(keras.callbacks.Callback):
    """Let random layers draw other numbers on each device, and on the first those of a single device.

    Keras starts all devices with one state, so that the first image of each would be mirrored, or not, together. This
    callback has to stand behind `CheckpointCallback`, which restores the state.
    """

    model: keras.Model  # pyright: ignore[reportIncompatibleMethodOverride]  Keras's property has no type

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        for state in (v for v in self.model.variables if v.name == "seed_generator_state"):
            first = to_numpy(state)  # the first device's
            for i, replica in enumerate(self.model.distribute_strategy.experimental_local_results(state.value)):
                replica.assign(first + np.array([i, 0], first.dtype))


class ReplicaBatches(keras.utils.PyDataset):
    """Batches `(x, y, weights)` of which several devices get equal shares.

    A batch that does not divide is repeated for each device: each sees all of it, so that its mean and the statistics
    of BatchNormalization are the batch's. `weights` are `(N,) float32`, those of the loss; copies have them with a
    negative sign, as they do not count in the metrics: Keras passes nothing else on with a row.
    """

    def __init__(self, batches: Batches, devices: int) -> None:
        super().__init__()
        self.batches, self.devices = batches, devices
        self.batch_size: int = batches.batch_size  # MLflow's autologging asks for it, and logs no epoch without it

    def __len__(self) -> int:
        return len(self.batches)

    def on_epoch_end(self) -> None:
        self.batches.on_epoch_end()

    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]:
        x, y, *given = self.batches[index]
        weights = given[0] if given else np.ones(len(x), "float32")
        if len(x) % self.devices == 0:
            return x, y, weights
        x, y = (np.concatenate([rows] * self.devices) for rows in (x, y))
        return x, y, np.concatenate([weights, *[-weights] * (self.devices - 1)])
