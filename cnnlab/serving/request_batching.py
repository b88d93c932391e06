"""Put the images of several requests through the model together: a few threads decode, one more predicts batches."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

PREPARING = 4  # requests at a time: a picture is up to half a gigabyte while it is decoded
MOST_IMAGES = 64  # through the model at a time; more are no faster, and the first ones would wait for the last
Images: TypeAlias = npt.NDArray[np.uint8]  # (N, H, W, 3)
Probabilities: TypeAlias = npt.NDArray[np.float32]  # (N, num_classes)
Answer: TypeAlias = "asyncio.Future[Probabilities]"


class Batcher:
    """Predict for requests in batches.

    A few threads make images of the requests as they come. One more takes the images that are ready by then, as long
    as they fit, through the model. So a batch holds what came while the last one was computed: no request waits for a
    batch to become full.

    Args:
        predict: function from images, N up to `MOST_IMAGES`, to probabilities.
        observe: is called with the number of images of each batch.
    """

    def __init__(
        self, predict: Callable[[Images], Probabilities], observe: Callable[[int], None] = lambda count: None
    ) -> None:
        self._predict, self._observe = predict, observe
        self._asked: queue.SimpleQueue[tuple[Callable[[Any], Images], Any, Answer]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[Images, Answer]] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._started = False

    async def ask(self, prepare: Callable[[Any], Images], content: Any) -> Probabilities:
        """Predict for the images that `prepare(content)` returns, in a thread; raises what it and the model raise."""
        answer: Answer = asyncio.get_running_loop().create_future()
        if not self._started:
            self._start_threads()
        self._asked.put((prepare, content, answer))
        return await answer

    def _start_threads(self) -> None:
        with self._start:
            if not self._started:
                self._started = True
                for work in [self._prepare] * PREPARING + [self._compute]:
                    threading.Thread(target=work, daemon=True).start()

    def _prepare(self) -> None:
        while True:
            prepare, content, answer = self._asked.get()
            if answer.done():  # the client has left, or has waited too long
                continue
            try:
                self._ready.put((prepare(content), answer))
            except Exception as error:
                _tell([(answer, error)])
            del prepare, content, answer  # not until the next one comes

    def _compute(self) -> None:
        left: tuple[Images, Answer] | None = None
        while True:
            taken = [left or self._ready.get()]
            count, left = len(taken[0][0]), None
            while count < MOST_IMAGES and left is None:
                try:
                    item = self._ready.get_nowait()
                except queue.Empty:
                    break
                if count + len(item[0]) > MOST_IMAGES:
                    left = item
                else:
                    taken.append(item)
                    count += len(item[0])
            self._answer([(images, answer) for images, answer in taken if not answer.done()])
            del taken

    def _answer(self, taken: list[tuple[Images, Answer]]) -> None:
        if not taken:
            return
        try:
            images = np.concatenate([images for images, _ in taken]) if len(taken) > 1 else taken[0][0]
            outputs = []
            for start in range(0, len(images), MOST_IMAGES):
                batch = images[start : start + MOST_IMAGES]
                outputs.append(self._predict(batch))
                self._observe(len(batch))
            output = np.concatenate(outputs) if len(outputs) > 1 else outputs[0]
        except Exception as error:
            _tell([(answer, error) for _, answer in taken])
            return
        ends = np.cumsum([len(images) for images, _ in taken])
        _tell([(answer, output[end - len(images) : end]) for (images, answer), end in zip(taken, ends, strict=True)])


def _tell(answers: list[tuple[Answer, Probabilities | Exception]]) -> None:
    """Wake the requests that wait for these answers, all in one event loop."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        answers[0][0].get_loop().call_soon_threadsafe(_set, answers)


def _set(answers: list[tuple[Answer, Probabilities | Exception]]) -> None:
    for answer, result in answers:
        if answer.done():
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
