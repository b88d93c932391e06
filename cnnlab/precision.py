"""Arithmetic precision: what the processor has in hardware, and the Keras policy while a model is built."""

import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

PRECISIONS = ("float32", "mixed_bfloat16", "auto")
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
        print(
            "warning: this processor has no bfloat16 instructions; mixed_bfloat16 is emulated and slower than float32.",
            file=sys.stderr,
        )
    return precision


def has_bfloat16() -> bool:
    """Whether bfloat16 is multiplied in hardware: by every GPU TensorFlow sees, or without one by the processor."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
        return all(capability and capability >= (8, 0) for capability in capabilities)
    if platform.system() == "Darwin":
        query = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() == "1"
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not CPU_FLAGS.isdisjoint(cpuinfo.read_text().split())


@contextmanager
def policy(precision):
    """Layers made inside compute in this Keras dtype policy; the one before is restored."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
