"""Test requests that go through the model in one batch: pytest tests/serving/test_request_batching.py"""

import asyncio
import threading

import numpy as np
import pytest

from cnnlab.serving import request_batching
from cnnlab.serving.request_batching import Batcher


def images_of(numbers):
    """One image of one pixel for each number."""
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1)


def test_waiting_requests_share_a_batch_and_each_gets_its_own_answer(monkeypatch):
    monkeypatch.setattr(request_batching, "MOST_IMAGES", 8)
    counts, open_gate = [], threading.Event()

    def predict(images):
        if not counts:
            open_gate.wait(10)  # the others come meanwhile
        return images[:, 0, 0].astype(float) * 2

    batches = Batcher(predict, counts.append)

    async def ask():
        first = asyncio.ensure_future(batches.ask(images_of, [200]))
        await asyncio.sleep(0.1)
        others = [batches.ask(images_of, [i, i + 1]) for i in range(20)]
        large = batches.ask(images_of, list(range(100, 120)))
        waiting = asyncio.gather(*others, large)
        await asyncio.sleep(0.1)
        open_gate.set()
        return await first, await waiting

    first, (*others, large) = asyncio.run(ask())
    assert first.tolist() == [[400]]
    assert [one.ravel().tolist() for one in others] == [[2 * i, 2 * i + 2] for i in range(20)]
    assert large.ravel().tolist() == list(range(200, 240, 2))
    assert sum(counts) == 61
    assert counts[0] == 1
    assert max(counts) == 8
    assert len(counts) <= 1 + 5 + 3 + 2  # 40 images of pairs, 20 of the large one, and what order leaves open


def test_errors_reach_the_requests_that_caused_them_only():
    def predict(images):
        if (images == 13).any():
            raise RuntimeError("unlucky")
        return images[:, 0, 0]

    batches = Batcher(predict)

    async def ask(*numbers):
        return await asyncio.gather(*(batches.ask(images_of, number) for number in numbers), return_exceptions=True)

    assert str(asyncio.run(ask([13]))[0]) == "unlucky"
    wrong, right = asyncio.run(ask("no numbers", [3]))
    assert isinstance(wrong, ValueError)
    assert right.tolist() == [[3]]


def test_requests_whose_client_is_gone_are_not_computed():
    seen, gate = [], threading.Event()

    def prepare(number):
        gate.wait(10)
        seen.append(number)
        return images_of([number])

    batches = Batcher(lambda images: images[:, 0, 0])

    async def ask():
        busy = [asyncio.ensure_future(batches.ask(prepare, i)) for i in range(request_batching.PREPARING)]
        await asyncio.sleep(0.05)  # they keep all threads busy
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await batches.ask(prepare, 99)
        gate.set()
        return await asyncio.gather(*busy), await batches.ask(prepare, 50)

    asyncio.run(ask())
    assert sorted(seen) == [*range(request_batching.PREPARING), 50]
