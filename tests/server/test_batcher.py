"""The batcher, with a fake backbone whose forward can be watched, held and broken; real ones are tested elsewhere."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.batcher import Batcher
from likewise_server.engine.admission import Admission
from likewise_server.errors import DeadlineExceeded, Internal, OutOfRange, ResourceExhausted, Unavailable

REF = BackboneRef("fake")


class FakeBackbone:
    """Its vector is the image's first value; 13 breaks a batch; `gate` holds a forward back."""

    def __init__(self) -> None:
        self.name = "fake"
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, pixels: Any, _ref: BackboneRef) -> Any:
        values = [int(image.flat[0]) for image in pixels]
        self.batches.append(values)
        self.gate.wait(5)
        if 13 in values:
            raise ValueError("thirteen")
        return np.array(values, np.float32)[:, None]

    def space(self, _ref: BackboneRef) -> Space | None:
        return None

    def learn_space(self, ref: BackboneRef) -> Space:
        return Space("f", 1, ref)


def image(value: int) -> Any:
    return np.full((2, 2, 3), value, np.uint8)


@pytest.fixture
async def batcher() -> AsyncIterator[Batcher]:
    made = Batcher(max_batch=8)
    yield made
    await asyncio.to_thread(made.close)


async def ask(batcher: Batcher, backbone: Any, value: int, **options: Any) -> float:
    return float((await batcher.embed(backbone, REF, image(value), **options)).vector[0])


async def test_what_queues_during_a_forward_leaves_as_full_batches(batcher: Batcher) -> None:
    fake = FakeBackbone()
    fake.gate.clear()
    first = asyncio.create_task(ask(batcher, fake, 1))
    await asyncio.sleep(0.1)
    rest = [asyncio.create_task(ask(batcher, fake, value)) for value in range(2, 12)]
    await asyncio.sleep(0.1)
    fake.gate.set()
    assert [await task for task in (first, *rest)] == list(range(1, 12))
    assert fake.batches == [[1], list(range(2, 10)), [10, 11]]


async def test_features_do_not_share_a_batch_and_keep_their_order(batcher: Batcher) -> None:
    one, two = FakeBackbone(), FakeBackbone()
    one.gate.clear()
    hold = asyncio.create_task(ask(batcher, one, 0))
    await asyncio.sleep(0.1)
    tasks = [asyncio.create_task(ask(batcher, one if value % 2 else two, value)) for value in range(1, 9)]
    await asyncio.sleep(0.1)
    one.gate.set()
    assert [await task for task in (hold, *tasks)] == list(range(9))
    assert one.batches == [[0], [1, 3, 5, 7]]
    assert two.batches == [[2, 4, 6, 8]]


async def test_one_bad_image_costs_only_itself(batcher: Batcher) -> None:
    fake = FakeBackbone()
    fake.gate.clear()
    hold = asyncio.create_task(ask(batcher, fake, 0))
    await asyncio.sleep(0.1)
    tasks = {value: asyncio.create_task(ask(batcher, fake, value)) for value in (10, 11, 12, 13, 14, 15)}
    await asyncio.sleep(0.1)
    fake.gate.set()
    await hold
    results = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
    assert isinstance(results.pop(13), Internal)
    assert results == {value: value for value in (10, 11, 12, 14, 15)}


async def test_cancelled_and_expired_images_never_reach_the_device(batcher: Batcher) -> None:
    fake = FakeBackbone()
    fake.gate.clear()
    hold = asyncio.create_task(ask(batcher, fake, 0))
    await asyncio.sleep(0.1)
    cancelled = asyncio.create_task(ask(batcher, fake, 1))
    expired = asyncio.create_task(ask(batcher, fake, 2, deadline=time.monotonic() + 0.05))
    alive = asyncio.create_task(ask(batcher, fake, 3, deadline=time.monotonic() + 60))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    await asyncio.sleep(0.01)
    fake.gate.set()
    assert await hold == 0
    assert await alive == 3
    with pytest.raises(DeadlineExceeded, match="queued"):
        await expired
    assert fake.batches == [[0], [3]]


async def test_closing_answers_what_is_queued_and_refuses_the_rest() -> None:
    fake, batcher = FakeBackbone(), Batcher(max_batch=2)
    tasks = [asyncio.create_task(ask(batcher, fake, value)) for value in range(6)]
    await asyncio.sleep(0)
    await asyncio.to_thread(batcher.close)
    assert await asyncio.gather(*tasks) == list(range(6))
    assert not batcher.alive()
    with pytest.raises(Unavailable):
        await ask(batcher, fake, 1)


async def test_admission_refuses_with_a_time_or_lets_streams_wait() -> None:
    admission = Admission(max_items=4, max_bytes=1000)
    with pytest.raises(OutOfRange):
        async with admission.admit(5, 10, wait=False):
            pass
    async with admission.admit(3, 900, wait=False):
        with pytest.raises(ResourceExhausted, match="retry after") as refused:
            async with admission.admit(2, 10, wait=False):
                pass
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s > 0
        with pytest.raises(ResourceExhausted):
            async with admission.admit(1, 200, wait=False):
                pass

        async def patient() -> str:
            async with admission.admit(2, 10, wait=True):
                return "in"

        waiting = asyncio.create_task(patient())
        await asyncio.sleep(0.05)
        assert not waiting.done()
    assert await waiting == "in"
    assert (admission.items, admission.bytes) == (0, 0)


async def test_giving_up_a_place_in_line_lets_the_next_one_in() -> None:
    admission = Admission(max_items=4, max_bytes=1000)
    entered: list[str] = []

    async def enter(name: str, items: int) -> None:
        async with admission.admit(items, 10, wait=True):
            entered.append(name)

    async with admission.admit(3, 10, wait=False):
        big, small = asyncio.create_task(enter("big", 4)), asyncio.create_task(enter("small", 1))
        await asyncio.sleep(0)
        assert entered == [], "a small one does not overtake a big one that waits"
        with pytest.raises(ResourceExhausted):
            async with admission.admit(1, 10, wait=False):
                pass
        big.cancel()
        await asyncio.gather(big, return_exceptions=True)
        await small
    assert entered == ["small"]
    assert (admission.items, admission.bytes) == (0, 0)


async def test_forwards_that_all_fail_are_no_healthy_server(batcher: Batcher) -> None:
    fake = FakeBackbone()
    for _ in range(8):
        assert batcher.alive()
        with pytest.raises(Internal):
            await ask(batcher, fake, 13)
    assert not batcher.alive()
    assert await ask(batcher, fake, 1) == 1
    assert batcher.alive()
