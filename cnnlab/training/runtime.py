"""Set up TensorFlow for the machine: precision, determinism and threads; let the memory of trainings be freed.

TensorFlow's private modules are imported here only.
"""

from __future__ import annotations

import gc
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.framework import ops

from cnnlab.errors import LabError
from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held

# Linux's names of the instructions that multiply bfloat16: x86 AVX-512 and AMX, Arm.
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve_precision(precision: str) -> str:
    """Return the Keras dtype policy that "auto" means on this machine, or the policy that was given.

    A warning says where mixed_bfloat16 was asked for and this processor has to emulate it.
    """
    if precision == "float32":
        return precision
    supported = has_bfloat16()
    if precision == "auto":
        return "mixed_bfloat16" if supported else "float32"
    if not supported:
        log.warning("this processor has no bfloat16 instructions; mixed_bfloat16 is emulated and slower than float32.")
    return precision


def gpu_count() -> int:
    """Return how many GPUs TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def has_bfloat16() -> bool:
    """Return whether bfloat16 is multiplied in hardware: by every GPU, or where there is none by the processor."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
        return all(capability and capability >= (8, 0) for capability in capabilities)
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() == "1"
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not CPU_FLAGS.isdisjoint(cpuinfo.read_text().split())


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """Return a Keras variable or tensor as a NumPy array of its shape and dtype."""
    return np.asarray(keras.ops.convert_to_numpy(value))


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Make layers inside with this Keras dtype policy, and restore the global one at the end."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def expect_keras_settings() -> None:
    """Raise `LabError` where keras.json or the caller set Keras to what the models are not made for."""
    received = (keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx())
    if received != (expected := ("tensorflow", "channels_last", "float32")):
        raise LabError(
            f"Expected Keras with {', '.join(expected)}. Received: {', '.join(received)}. Set KERAS_BACKEND and "
            "keras.config, or correct keras.json."
        )


def enable_determinism() -> None:
    """Use only operations that repeat bit for bit for the rest of the process, as TensorFlow cannot undo this."""
    tf.config.experimental.enable_op_determinism()


def threads() -> int:
    """Return the number of threads that share an operation; it decides the last bits of a sum."""
    set_by_code = tf.config.threading.get_intra_op_parallelism_threads()
    return set_by_code or int(read_variable("TF_NUM_INTRAOP_THREADS") or joblib.cpu_count())


@contextmanager
def untuned_datasets() -> Iterator[None]:
    """Switch TensorFlow's autotuning off for the data sets that Keras iterates over inside.

    The end of an epoch waits for the tuning thread, which now and then misses that it is told to end, most often where
    all cores are busy: it sleeps for as long as the epoch took, a minute at most (TensorFlow 2.21).
    """
    iterate = tf.data.Dataset.__iter__
    options = tf.data.Options()
    options.autotune.enabled = False
    setattr(tf.data.Dataset, "__iter__", lambda self: iterate(self.with_options(options)))  # noqa: B010
    try:
        yield
    finally:
        setattr(tf.data.Dataset, "__iter__", iterate)  # noqa: B010


def free_models() -> None:
    """Free models that nobody uses any more: they refer to themselves, and Python alone keeps several of them."""
    with signals_held():
        gc.collect()


@contextmanager
def freed_graphs() -> Iterator[None]:
    """Let the graphs of training steps that are traced inside be freed with their models, 6 MB for a small CNN.

    Optimizers sum gradients over replicas with `all_reduce`, which registers a gradient of that sum for the rest of the
    process. The gradient holds all graphs of the step, and nothing ever asks for it (TensorFlow 2.21).
    """
    registry, all_reduce = ops.gradient_registry._registry, tf.distribute.ReplicaContext.all_reduce

    def unregistered(*args: Any, **kwargs: Any) -> Any:
        before = set(registry)
        try:
            return all_reduce(*args, **kwargs)
        finally:
            for name in registry.keys() - before:
                registry.pop(name, None)  # another replica's thread may be as far

    setattr(tf.distribute.ReplicaContext, "all_reduce", unregistered)  # noqa: B010
    try:
        yield
    finally:
        setattr(tf.distribute.ReplicaContext, "all_reduce", all_reduce)  # noqa: B010
