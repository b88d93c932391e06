"""Delay Ctrl-C and SIGTERM while TensorFlow works, as it would turn the exception they raise into another one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


@contextmanager
def signals_held() -> Iterator[Callable[[], None]]:
    """Delay SIGINT and SIGTERM until the end of the block, or until a call of the function that is yielded.

    A second signal is not delayed. Outside the main thread, the only one that gets signals, this does nothing.
    """
    pending: list[int] = []
    handlers: dict[int, Any] = {}

    def hold(signum: int, frame: FrameType | None) -> None:
        if pending:
            pending.clear()
            handlers[signum](signum, frame)
        pending.append(signum)

    def release() -> None:
        if pending:
            signum = pending.pop()
            handlers[signum](signum, None)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(signum)):  # the system's default actions need no Python
                handlers[signum] = handler
                signal.signal(signum, hold)
    try:
        yield release
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        release()


@contextmanager
def signals_between_batches() -> Iterator[keras.callbacks.Callback]:
    """Delay signals like `signals_held`, and yield a Keras callback that releases them at the end of every batch."""
    import keras

    with signals_held() as release:

        def on_batch_end(batch: int, logs: dict[str, Any] | None = None) -> None:
            release()

        names = ("on_train_batch_end", "on_test_batch_end", "on_predict_batch_end")
        yield keras.callbacks.LambdaCallback(**dict.fromkeys(names, on_batch_end))
