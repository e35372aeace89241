"""Somebody who waits for one image does not feel those who send thousands, and those still get their share."""

from __future__ import annotations

import asyncio

import pytest

from likewise_server.engine.embedding import INTERACTIVE
from likewise_server.pipeline.fair import BULK_SHARE
from support.fakes import Rig, ask, asking, encoded, until


async def test_an_image_overtakes_a_bulk_stream_at_the_decoder(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=8), rig.backbone()
    rig.decode.valve.shut()
    bulk = asking(batcher, fake, *range(1000, 1400), bulk=True)
    await until(lambda: rig.decode.begun)
    single = asking(batcher, fake, 1)
    await until(lambda: batcher.queues.waiting() == 400)
    rig.decode.valve.let(2)
    assert await single == [1]
    assert not bulk.done()
    assert rig.decode.begun[:2] == [1000, 1]
    rig.decode.valve.open()
    assert await bulk == list(range(1000, 1400))


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
async def test_an_image_overtakes_a_bulk_stream_at_the_device(rig: Rig, device: str) -> None:
    batcher, fake = rig.batcher(max_batch=8, devices=(device,)), rig.backbone()
    fake.launching.shut()
    first = asking(batcher, fake, 0)
    await until(lambda: fake.batches)
    bulk = asking(batcher, fake, *range(1000, 1012), bulk=True)
    await until(lambda: len(rig.decode.begun) == 13 and batcher.queues.waiting() == 12)
    single = asking(batcher, fake, 1)
    await until(lambda: len(rig.decode.begun) == 14 and batcher.queues.waiting() == 13)
    fake.launching.open()
    assert [await first, await single] == [[0], [1]]
    assert await bulk == list(range(1000, 1012))
    assert fake.batches[1] == [1, *range(1000, 1007)]


async def test_an_image_behind_a_full_read_ahead_waits_for_two_batches_at_most(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4), rig.backbone()
    fake.launching.shut()
    bulk = asking(batcher, fake, *range(1000, 1400), bulk=True)
    await until(lambda: fake.batches and len(rig.decode.begun) == 4 + 8)
    single = asking(batcher, fake, 1)
    await until(lambda: batcher.queues.waiting() == 400 - 4 + 1)
    fake.launching.let(1)
    await until(lambda: len(fake.batches) == 2 and 1 in rig.decode.begun)
    assert rig.decode.begun.index(1) == 12, "the very next to be decoded"
    await until(lambda: len(rig.decode.begun) == 16 and batcher.queues.waiting() == 400 - 8 + 1)
    fake.launching.open()
    assert await single == [1]
    assert 1 in fake.batches[2]
    await bulk


async def test_bulk_work_moves_under_interactive_load_that_never_ends(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4, devices=("cuda:0",)), rig.backbone()
    rig.decode.valve.shut()
    asking_first = asking(batcher, fake, 0)
    await until(lambda: rig.decode.begun)
    bulk = asking(batcher, fake, *range(1000, 1010), bulk=True)
    callers = [asking(batcher, fake, value) for value in range(1, 4)]
    await until(lambda: batcher.queues.waiting() == 13)
    value = 4
    while not bulk.done():  # as long as it takes, three interactive images wait
        if batcher.queues.waiting() and sum(not task.done() for task in callers) < 4:
            callers.append(asking(batcher, fake, value))
            value += 1
        rig.decode.valve.let(1 if rig.decode.valve.held else 0)
        await asyncio.sleep(0)
        assert value < 2000, "bulk work starved"
    rig.decode.valve.open()
    assert await bulk == list(range(1000, 1010))
    assert await asking_first == [0]
    assert [await task for task in callers] == [[number] for number in range(1, value)]
    at_gate = rig.decode.begun[1 : rig.decode.begun.index(1009) + 1]
    for end in range(BULK_SHARE, len(at_gate), BULK_SHARE):
        assert sum(number >= 1000 for number in at_gate[:end]) >= end // BULK_SHARE


async def test_every_fourth_place_of_a_batch_is_bulk_while_both_wait(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=8), rig.backbone()
    fake.launching.shut()
    first = asking(batcher, fake, 0)
    await until(lambda: fake.batches)
    bulk = asking(batcher, fake, *range(1000, 1004), bulk=True)
    singles = [asking(batcher, fake, value) for value in range(1, 13)]
    await until(lambda: len(rig.decode.begun) == 17 and batcher.queues.waiting() == 16)
    fake.launching.open()
    await asyncio.gather(first, bulk, *singles)
    assert [sum(value >= 1000 for value in batch) for batch in fake.batches] == [0, 2, 2]


async def test_two_bulk_callers_take_turns(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4), rig.backbone()
    rig.decode.valve.shut()
    large = asking(batcher, fake, *range(1000, 1100), bulk=True)
    await until(lambda: rig.decode.begun)
    small = asking(batcher, fake, *range(5), bulk=True)
    await until(lambda: batcher.queues.waiting() == 104)
    rig.decode.valve.open()
    assert await small == list(range(5))
    assert await large == list(range(1000, 1100))
    assert [value for value in rig.decode.begun[1:11] if value < 1000] == list(range(5))
    assert sorted(value for value in rig.decode.begun[1:11] if value >= 1000) == list(range(1001, 1006))


async def test_the_requests_of_one_stream_share_its_turns(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4), rig.backbone()
    rig.decode.valve.shut()
    stream, other = batcher.new_caller(), batcher.new_caller()
    tasks = [asking(batcher, fake, 1000 + value, bulk=True, caller=stream) for value in range(50)]
    await until(lambda: batcher.queues.waiting() == 49)
    tasks += [asking(batcher, fake, value, bulk=True, caller=other) for value in range(3)]
    await until(lambda: batcher.queues.waiting() == 52)
    rig.decode.valve.open()
    await asyncio.gather(*tasks)
    assert [value for value in rig.decode.begun[1:7] if value < 1000] == [0, 1, 2]


@pytest.mark.parametrize(
    ("images", "wait", "overtaken"), [(INTERACTIVE, False, 0), (INTERACTIVE + 1, False, 1), (1, True, 1)]
)
async def test_large_requests_and_streams_are_bulk(rig: Rig, images: int, wait: bool, overtaken: int) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    embedder = rig.embedder(batcher, fake)
    await embedder.space()
    rig.decode.valve.shut()
    hold = asking(batcher, fake, 999)
    await until(lambda: rig.decode.begun)
    asked = asyncio.create_task(embedder.embed(encoded(*range(100, 100 + images)), wait=wait))
    await until(lambda: batcher.queues.waiting() == images)
    single = asyncio.create_task(embedder.embed(encoded(1)))
    await until(lambda: batcher.queues.waiting() == images + 1)
    rig.decode.valve.open()
    await asyncio.gather(hold, asked, single)
    position = rig.decode.begun.index(1)
    assert position == (1 if overtaken else 2), "overtaken, or taking turns with another interactive caller"
    assert (await embedder.embed(encoded(7, 8))).vectors.tolist() == [[7], [8]]


async def test_one_who_asks_alone_is_answered_at_once(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=32), rig.backbone()
    for value in range(5):
        assert await ask(batcher, fake, value) == [value]
    assert fake.batches == [[value] for value in range(5)]
