"""One training over several devices of one machine: which, and batches of which each device gets an equal share.

`tf.distribute.MirroredStrategy` with the recipe's batch shared out. Keras takes the mean of the devices' means, which
is that of the batch only where the shares are equal, and a device without pictures ends in an error: a batch that does
not divide is given to every device as a whole.
"""

import contextlib
import os

import keras
import numpy as np
import tensorflow as tf

from cnnlab.errors import ArgumentError, LabError
from cnnlab.models.layers import member_networks
from cnnlab.training.optimizers import compile_like

VARIABLE = "CNNLAB_DEVICES"
CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")


def wanted() -> int | str:
    """What `$CNNLAB_DEVICES` says: "auto" or a number from 1 upwards, 1 by default.

    Raises:
        ArgumentError: it says neither.
    """
    text = os.environ.get(VARIABLE) or "1"
    if text == "auto":
        return text
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ArgumentError(f"Expected devices to be auto or a number from 1 upwards. Received: '{text}'.")
    return int(text)


def devices_for(batch_size) -> list[str]:
    """TensorFlow's names of several devices that a training is to run on; none for the usual single one.

    Args:
        batch_size: pictures a step, on all devices together. "auto" is one device where all GPUs cannot share it
            equally.

    Raises:
        ArgumentError: there are not as many as are wanted, or they cannot share a batch equally.
    """
    number = wanted()
    if number == 1:
        return []
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    if number == "auto":
        return gpus if len(gpus) > 1 and batch_size % len(gpus) == 0 else []
    # Several CPUs there are only where a program has asked TensorFlow for logical ones, as tests do.
    found = gpus or [device.name for device in tf.config.list_logical_devices("CPU")]
    if number > len(found):
        seen = f"{number}, and TensorFlow sees {len(gpus) or 'none'}"
        raise ArgumentError(
            f"Expected devices to be auto, 1, or at most the number of this machine's GPUs. Received: {seen}. Use auto."
        )
    if batch_size % number:
        raise ArgumentError(
            f"Expected a batch_size that {number} devices can share equally. Received: {batch_size}. Use another "
            "batch_size, or fewer devices."
        )
    return found[:number]


def built_for(batch_size):
    """Around what builds a model, so that it can be trained on the devices for such a batch."""
    names = devices_for(batch_size)
    return _strategy(names).scope() if names else contextlib.nullcontext()


_strategies = {}  # by devices


def _strategy(names):
    """One for all trainings of the process: a second one numbers its sums over devices from the start again, and takes
    the first's for its own, "Shape mismatch in the collective instance" (TensorFlow 2.21).
    """
    names = tuple(names)
    if names not in _strategies:
        if _strategies:
            first = len(next(iter(_strategies)))
            raise LabError(
                f"Expected {first} devices, as an earlier training of this process had. Received: {len(names)}. "
                "Train in another process."
            )
        _strategies[names] = tf.distribute.MirroredStrategy(names)
    return _strategies[names]


def expect_shareable(model) -> None:
    """Raise `ArgumentError` where a model was built for several devices and `share` cannot make one of it."""
    if count(model) == 1:
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
        f"Expected a model of layers between inputs and outputs, to train it on {count(model)} devices. Received: "
        f"{received}. Leave devices out."
    )


def count(model) -> int:
    """How many devices a model was built for."""
    return model.distribute_strategy.num_replicas_in_sync


def scope(model):
    """Around what makes a model's variables, or those of its optimizer and metrics."""
    return model.distribute_strategy.scope() if count(model) > 1 else contextlib.nullcontext()


def share(part, model):
    """A part of a model, or the whole, with the same layers, compiled as it is, to be fitted on the model's devices."""
    with scope(model):
        shared = Shared(part.inputs, part.outputs, name=part.name)
        # Several steps are a loop of the graph, in which TensorFlow 2.21 gives the sums over devices no numbers: "You
        # must feed a value for placeholder tensor".
        compile_like(shared, part, steps_per_execution=1)
    return shared


def on_one(model):
    """The same layers as a model that answers on one device: a strategy would give each device its share."""
    return keras.Model(model.inputs, model.outputs, name=model.name)


@contextlib.contextmanager
def as_on_one(model):
    """Around the fit of a `Shared`: BatchNormalization goes by the pictures of all devices, and gradients are clipped
    by the norm of their sum. Neither is in what is saved. For other models nothing is done.
    """
    several = count(model)
    changed = [(layer, "synchronized", True) for layer in _batch_normalisations(model)] if several > 1 else []
    for optimizer in _optimizers(model) if several > 1 else ():
        # Keras clips a device's gradients before they are summed; `Shared` gives each a share of the sum.
        clips = {name: getattr(optimizer, name) for name in CLIPS}
        changed += [(optimizer, name, clip / several) for name, clip in clips.items() if clip]
    before = [(thing, name, getattr(thing, name)) for thing, name, _ in changed]
    try:
        for thing, name, value in changed:
            setattr(thing, name, value)
        yield
    finally:
        for thing, name, value in before:
            setattr(thing, name, value)


def _optimizers(model):
    return getattr(model.optimizer, "optimizers", [model.optimizer])


def _batch_normalisations(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from _batch_normalisations(layer)


class Shared(keras.Model):
    """A model in a strategy's scope, whose steps give what one device gives.

    Batches are `EvenBatches`.
    """

    def train_step(self, data):
        x, y, weights = data
        with tf.GradientTape() as tape:
            answers = self(x, training=True)
            loss = self.compute_loss(x, y, answers, tf.abs(weights), training=True)  # a share of the mean
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_weights)
        if any(getattr(optimizer, name) for optimizer in _optimizers(self) for name in CLIPS):
            replica = tf.distribute.get_replica_context()
            several = replica.num_replicas_in_sync
            gradients = [gradient / several for gradient in replica.all_reduce("sum", gradients)]
        self.optimizer.apply(gradients, self.trainable_weights)
        return self._figures(loss, x, y, answers, weights)

    def test_step(self, data):
        x, y, weights = data
        answers = self(x, training=False)
        return self._figures(self.compute_loss(x, y, answers, tf.abs(weights), training=False), x, y, answers, weights)

    def _figures(self, loss, x, y, answers, weights):
        copied = tf.reduce_any(tf.bitcast(weights, tf.int32) < 0)  # the sign's bit, which -0.0 has too
        rows = tf.where(copied, 0, tf.shape(y)[0])
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        mean = loss * tf.distribute.get_replica_context().num_replicas_in_sync
        tracker.update_state(mean, sample_weight=tf.cast(rows, "float32"))
        return self.compute_metrics(x, y[:rows], answers[:rows], weights[:rows])


class DrawApart(keras.callbacks.Callback):
    """Random layers draw other numbers on each device, the first the ones of a single device: Keras starts all with the
    same, so that the first picture of each would be mirrored, or not, together.

    It comes behind what puts states back.
    """

    def on_train_begin(self, logs=None):
        for state in (v for v in self.model.variables if v.name == "seed_generator_state"):
            first = keras.ops.convert_to_numpy(state)  # the first device's
            for device, own in enumerate(self.model.distribute_strategy.experimental_local_results(state.value)):
                own.assign(first + np.array([device, 0], first.dtype))


class EvenBatches(keras.utils.PyDataset):
    """Batches of which several devices get equal shares, as `(x, y, weights)`.

    One that does not divide comes as many times as there are devices: each sees all of it, so that its mean and the
    statistics of BatchNormalization are the batch's. Weights of copies are negative: they do not count in the figures.

    Args:
        batches: a `Batches`.
        devices: their number.
    """

    def __init__(self, batches, devices):
        super().__init__()
        self.batches, self.devices = batches, devices
        self.batch_size = batches.batch_size  # which autologging asks for, and without it logs none of the epochs

    def __len__(self):
        return len(self.batches)

    def on_epoch_end(self):
        self.batches.on_epoch_end()

    def __getitem__(self, i):
        x, y, *weights = self.batches[i]
        weights = weights[0] if weights else np.ones(len(x), "float32")
        if len(x) % self.devices == 0:
            return x, y, weights
        x, y = (np.concatenate([rows] * self.devices) for rows in (x, y))
        return x, y, np.concatenate([weights, *[-weights] * (self.devices - 1)])
