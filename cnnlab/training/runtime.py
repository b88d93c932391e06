"""What TensorFlow and the processor compute with: precision, determinism, threads, and the memory of ended trainings.

TensorFlow's private parts are reached here only.
"""

import gc
import os
import platform
import subprocess
from contextlib import contextmanager
from pathlib import Path

import joblib
import keras
import tensorflow as tf
from tensorflow.python.framework import ops

from cnnlab.errors import LabError
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held

# Linux's names of the instructions that multiply bfloat16: x86 AVX-512 and AMX, Arm.
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve(precision) -> str:
    """ "auto" as the policy for this machine, anything else as it is, with a warning where it is emulated."""
    if precision == "float32":
        return precision
    supported = has_bfloat16()
    if precision == "auto":
        return "mixed_bfloat16" if supported else "float32"
    if not supported:
        log.warning("this processor has no bfloat16 instructions; mixed_bfloat16 is emulated and slower than float32.")
    return precision


def gpus() -> int:
    """How many GPUs TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return gpus() > 0


def has_bfloat16() -> bool:
    """Whether bfloat16 is multiplied in hardware: by every GPU TensorFlow sees, or without one by the processor."""
    found = tf.config.list_physical_devices("GPU")
    if found:
        capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in found]
        return all(capability and capability >= (8, 0) for capability in capabilities)
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() == "1"
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not CPU_FLAGS.isdisjoint(cpuinfo.read_text().split())


@contextmanager
def policy(precision):
    """Layers made inside compute in this Keras dtype policy; the one before is restored."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def expect_keras() -> None:
    """Raise `LabError` where a keras.json or the caller gave Keras settings that the models are not made for."""
    import keras

    settings = (keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx())
    if settings != (expected := ("tensorflow", "channels_last", "float32")):
        raise LabError(
            f"Expected Keras with {', '.join(expected)}. Received: {', '.join(settings)}. Set KERAS_BACKEND and "
            "keras.config, or correct keras.json."
        )


def expect_determinism() -> None:
    """Only operations that repeat bit for bit, for the rest of the process; there is no way back."""
    tf.config.experimental.enable_op_determinism()


def threads() -> int:
    """Threads that TensorFlow splits an operation over; how a sum is split decides its last bits."""
    set_by_code = tf.config.threading.get_intra_op_parallelism_threads()
    return set_by_code or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or joblib.cpu_count())


@contextmanager
def untuned_datasets():
    """Data sets that Keras iterates over inside are not tuned by TensorFlow while they run.

    The end of an epoch waits for the tuning thread, which misses that it is told to end now and then, most often where
    all cores are busy: it sleeps on for as long as the epoch took, a minute at most (TensorFlow 2.21).
    """
    plain = tf.data.Dataset.__iter__
    options = tf.data.Options()
    options.autotune.enabled = False
    tf.data.Dataset.__iter__ = lambda dataset: plain(dataset.with_options(options))
    try:
        yield
    finally:
        tf.data.Dataset.__iter__ = plain


@contextmanager
def freed_models():
    """Free what Keras and TensorFlow keep of the models made inside; without it each training leaves 10 MB behind."""
    # Every traced training step registers gradients of its own here, and they hold on to its graphs (TensorFlow 2.21).
    registry = ops.gradient_registry._registry
    before = set(registry)
    try:
        yield
    finally:
        with signals_held():
            keras.backend.clear_session()
            for name in registry.keys() - before:
                del registry[name]
            gc.collect()
