"""Ctrl-C and SIGTERM while TensorFlow works: raised in its midst, an exception tears its scopes and becomes another."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def signals_held():
    """Let SIGINT and SIGTERM wait for the end of the block, or for a call of the function that this yields.

    A second signal does not wait. Outside the main thread, the only one that gets signals, this does nothing.
    """
    pending, handlers = [], {}

    def hold(signum, frame):
        if pending:
            pending.clear()
            handlers[signum](signum, frame)
        pending.append(signum)

    def release():
        if pending:
            signum = pending.pop()
            handlers[signum](signum, None)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(signum)):  # the system's own actions need no Python
                handlers[signum] = handler
                signal.signal(signum, hold)
    try:
        yield release
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        release()


@contextmanager
def signals_between_batches():
    """Like `signals_held`, but yields a Keras callback that lets signals through at the end of every batch."""
    import keras

    with signals_held() as release:

        def on_batch_end(batch, logs=None):
            release()

        names = ("on_train_batch_end", "on_test_batch_end", "on_predict_batch_end")
        yield keras.callbacks.LambdaCallback(**dict.fromkeys(names, on_batch_end))
