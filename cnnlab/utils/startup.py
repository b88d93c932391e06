"""What goes around the work of a command: signals, and TensorFlow's import."""

import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log


@contextmanager
def job(trains=True):
    """Around the work of a command: SIGTERM ends it like Ctrl-C, TensorFlow's start-up chatter stays off the screen."""

    def stop(signum, frame):
        raise SystemExit(128 + signum)

    expect_home()
    # Models and stores may be foreign. A command's own process only: somebody's script may load pickles of its own.
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks at its import
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # of files that are copied on this disk
    before = signal.signal(signal.SIGTERM, stop)
    try:
        if trains:
            load_tensorflow()
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def expect_home():
    """Give a user without a home, as in many containers, a folder of their own: MLflow does not import without one."""
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir(), f"cnnlab-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
        log.warning(f"this user has no home folder; using '{home}'.")


def load_tensorflow():
    """Import it with file descriptor 2 sent nowhere: it prints `I0000 ...` lines, whatever its log level."""
    # Its errors too: what goes wrong is raised, while a deterministic training logs "errors" about its own graphs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    backend = read_variable("KERAS_BACKEND")
    if backend not in (None, "tensorflow") and "keras" not in sys.modules:
        log.warning(f"KERAS_BACKEND is {backend}; cnnlab runs on tensorflow.")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # also over what a keras.json says
    with quiet():
        import keras
        import tensorflow as tf

        # A keras.json may say otherwise.
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)

        tf.config.list_physical_devices()
        tf.get_logger().setLevel("ERROR")  # retracing, say, is of no use to somebody who wrote no tf.function


@contextmanager
def quiet():
    """File descriptor 2 sent nowhere, for libraries that write to it on their own; errors are raised all the same."""
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
