"""Set up a process for the work of a command: signals, environment, and a TensorFlow without its start-up messages."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log


@contextmanager
def job(trains: bool = True) -> Iterator[None]:
    """Run the work of a command in the block, so that SIGTERM ends it like Ctrl-C.

    Args:
        trains: whether TensorFlow is imported first.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    expect_home()
    # Models and stores may be somebody else's. Only in a command's own process: a script may load pickles of its own.
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks at its import
    before = signal.signal(signal.SIGTERM, stop)
    try:
        if trains:
            load_tensorflow()
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def expect_home() -> None:
    """Create a home folder for a user without one, as in many containers, without which MLflow cannot be imported."""
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir(), f"cnnlab-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
        log.warning(f"this user has no home folder; using '{home}'.")


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without the lines `I0000 ...` that it prints whatever its log level."""
    # Its errors too: what goes wrong is raised, while a deterministic training logs "errors" about its own graphs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    backend = read_variable("KERAS_BACKEND")
    if backend not in (None, "tensorflow") and "keras" not in sys.modules:
        log.warning(f"KERAS_BACKEND is {backend}; cnnlab runs on tensorflow.")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # also where a user's keras.json says otherwise
    with quiet():
        import keras
        import tensorflow as tf

        # A user's keras.json may set other values.
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)

        tf.config.list_physical_devices()
        tf.get_logger().setLevel("ERROR")  # warnings such as of retracing do not help who wrote no tf.function


@contextmanager
def quiet() -> Iterator[None]:
    """Discard what libraries write to file descriptor 2 in the block; exceptions are raised as usual."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
