"""What several requests ask at the same time, made ready by a few threads and put through the model together."""

import asyncio
import contextlib
import queue
import threading

import numpy as np

PREPARING = 4  # requests at a time: a picture is up to half a gigabyte while it is decoded
MOST_IMAGES = 64  # through the model at a time; more are no faster, and the first ones would wait for the last


class Batcher:
    """Requests on their way through the model.

    Threads take them as they come and make images of them; one more takes what is ready by then, as long as it fits,
    through the model. So a batch is what came while the last one was computed: nobody waits for it to become full.

    Args:
        predict: `(N, H, W, 3) uint8` to `(N, num_classes)`, with N up to `MOST_IMAGES`.
        observe: is called with the number of images of each batch.
    """

    def __init__(self, predict, observe=lambda count: None):
        self._predict, self._observe = predict, observe
        self._asked, self._ready = queue.SimpleQueue(), queue.SimpleQueue()
        self._start = threading.Lock()
        self._started = False

    async def ask(self, prepare, content):
        """What the model gives for `prepare(content)`, `(N, H, W, 3) uint8`; raises what `prepare` and it raise."""
        answer = asyncio.get_running_loop().create_future()
        if not self._started:
            self._start_threads()
        self._asked.put((prepare, content, answer))
        return await answer

    def _start_threads(self):
        with self._start:
            if not self._started:
                self._started = True
                for work in [self._prepare] * PREPARING + [self._compute]:
                    threading.Thread(target=work, daemon=True).start()

    def _prepare(self):
        while True:
            prepare, content, answer = self._asked.get()
            if answer.done():  # whoever asked is gone, or has waited too long
                continue
            try:
                self._ready.put((prepare(content), answer))
            except Exception as error:
                _tell([(answer, error)])
            del prepare, content, answer  # not until the next one comes

    def _compute(self):
        left = None
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

    def _answer(self, taken):
        if not taken:
            return
        try:
            images = np.concatenate([images for images, _ in taken]) if len(taken) > 1 else taken[0][0]
            parts = [images[i : i + MOST_IMAGES] for i in range(0, len(images), MOST_IMAGES)]
            outputs = []
            for part in parts:
                outputs.append(self._predict(part))
                self._observe(len(part))
            output = np.concatenate(outputs) if len(outputs) > 1 else outputs[0]
        except Exception as error:
            _tell([(answer, error) for _, answer in taken])
            return
        ends = np.cumsum([len(images) for images, _ in taken])
        _tell([(answer, output[end - len(images) : end]) for (images, answer), end in zip(taken, ends, strict=True)])


def _tell(answers):
    """Wake those who wait, who are all in one event loop."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
        answers[0][0].get_loop().call_soon_threadsafe(_set, answers)


def _set(answers):
    for answer, result in answers:
        if answer.done():
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
