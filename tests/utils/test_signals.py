"""Test that signals wait for the end of a block or batch: pytest tests/utils/test_signals.py"""

import os
import signal
import threading

import keras
import numpy as np
import pytest

from cnnlab.utils.signals import signals_between_batches, signals_held
from cnnlab.utils.startup import job


def interrupt(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("signum", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["int", "term"]
)
def test_a_signal_waits_for_the_end_of_the_block(signum, error):
    done = []

    @signals_held()
    def work():
        interrupt(signum)
        done.append(1)

    with job(trains=False):
        before = signal.getsignal(signum)
        with pytest.raises(error):
            work()
        assert signal.getsignal(signum) is before
    assert done == [1]


def test_an_error_in_the_block_does_not_hide_the_signal():
    @signals_held()
    def work():
        interrupt()
        raise ValueError("broken disk")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_a_second_signal_does_not_wait():
    done = []

    @signals_held()
    def work():
        interrupt()
        done.append(1)
        interrupt()
        done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


def test_in_nested_blocks_a_signal_waits_for_the_outer_one():
    done = []

    @signals_held()
    def work():
        with signals_held() as release:
            interrupt()
            release()
            done.append(1)
        done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1, 2]


def test_another_thread_and_the_systems_own_action_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def look():
        with signals_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
    with signals_held():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is not before


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_signal_in_a_batch_takes_effect_at_its_end(method):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    name = {"fit": "train", "evaluate": "test", "predict": "predict"}[method]
    begun, ended = [], []

    def begin(batch, logs=None):
        begun.append(batch)
        if batch == 1:
            interrupt()

    user = keras.callbacks.LambdaCallback(
        **{f"on_{name}_batch_begin": begin, f"on_{name}_batch_end": lambda batch, logs=None: ended.append(batch)}
    )
    data = {"x": np.zeros((8, 2), "float32"), **({} if method == "predict" else {"y": np.zeros((8, 1), "float32")})}
    with pytest.raises(KeyboardInterrupt), signals_between_batches() as between_batches:
        getattr(model, method)(**data, batch_size=2, callbacks=[user, between_batches], verbose=0)
    assert begun == ended == [0, 1]
