"""Put the images of several requests through the model together: a few threads decode, one more predicts batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

PREPARING = 4  # requests at a time: a picture is up to half a gigabyte while it is decoded
MOST_IMAGES = 64  # through the model at a time; more are no faster, and the first ones would wait for the last
Images: TypeAlias = npt.NDArray[np.uint8]  # (N, H, W, 3)
Probabilities: TypeAlias = npt.NDArray[np.float32]  # (N, num_classes)


class Batcher:
    """Predict for requests in batches, and call `observe` with the number of images of each.

    A few threads make images of the requests as they come. One more takes the images that are ready by then, as long
    as they fit, through the model. So a batch holds what came while the last one was computed: no request waits for a
    batch to become full.
    """

    def __init__(
        self, predict: Callable[[Images], Probabilities], observe: Callable[[int], None] = lambda count: None
    ) -> None:
        self._predict, self._observe = predict, observe
        self._preparers, self._computer = ThreadPoolExecutor(PREPARING), ThreadPoolExecutor(1)
        self._ready: deque[tuple[Images, Future[Probabilities]]] = deque()

    async def ask(self, prepare: Callable[[Any], Images], content: Any) -> Probabilities:
        """Predict for the images that `prepare(content)` returns, in a thread; raises what it and the model raise."""
        answer: Future[Probabilities] = Future()
        self._preparers.submit(self._prepare, prepare, content, answer)
        return await asyncio.wrap_future(answer)

    def _prepare(self, prepare: Callable[[Any], Images], content: Any, answer: Future[Probabilities]) -> None:
        if answer.cancelled():  # the client has left, or has waited too long
            return
        try:
            self._ready.append((prepare(content), answer))
            self._computer.submit(self._compute)
        except Exception as error:
            answer.set_exception(error)

    def _compute(self) -> None:
        """Predict for what is ready; nothing is where an earlier call has taken it along."""
        taken, count = [], 0
        while self._ready and (not taken or count + len(self._ready[0][0]) <= MOST_IMAGES):
            images, answer = self._ready.popleft()
            if answer.set_running_or_notify_cancel():
                taken.append((images, answer))
                count += len(images)
        if not taken:
            return
        try:
            images = np.concatenate([images for images, _ in taken]) if len(taken) > 1 else taken[0][0]
            outputs = []
            for start in range(0, count, MOST_IMAGES):
                batch = images[start : start + MOST_IMAGES]
                outputs.append(self._predict(batch))
                self._observe(len(batch))
        except Exception as error:
            for _, answer in taken:
                answer.set_exception(error)
            return
        ends = np.cumsum([len(images) for images, _ in taken])
        for (_, answer), output in zip(taken, np.split(np.concatenate(outputs), ends[:-1]), strict=True):
            answer.set_result(output)
