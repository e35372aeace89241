"""The batcher as its callers know it: images in, each answered once, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import numpy as np
import pytest

from likewise_server.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from likewise_server.pipeline.devices import HOPELESS
from likewise_server.pipeline.jobs import Embedded
from support.fakes import BAD, Rig, ask, asking, encoded, until
from support.waiting import PATIENCE_S


async def test_what_queues_during_a_forward_leaves_as_full_batches(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=8), rig.backbone()
    fake.launching.shut()
    first = asking(batcher, fake, 1)
    await until(lambda: fake.batches)
    rest = [asking(batcher, fake, value) for value in range(2, 12)]
    await until(lambda: len(rig.decode.begun) == 11 and batcher.queues.waiting() == 10)
    fake.launching.open()
    assert [await task for task in (first, *rest)] == [[value] for value in range(1, 12)]
    assert fake.batches == [[1], list(range(2, 10)), [10, 11]]
    assert [reason for *_, reason in rig.counts.batches] == ["drained", "full", "drained"]


async def test_backbones_and_layers_do_not_share_a_batch_and_keep_their_order(rig: Rig) -> None:
    batcher, one, two = rig.batcher(max_batch=8), rig.backbone("one"), rig.backbone("two")
    one.launching.shut()
    hold = asking(batcher, one, 0)
    await until(lambda: one.batches)
    tasks = [asking(batcher, one if value % 2 else two, value) for value in range(1, 9)]
    deep = [asking(batcher, one, value, layer="x") for value in (101, 102)]
    await until(lambda: len(rig.decode.begun) == 11 and batcher.queues.waiting() == 10)
    one.launching.open()
    assert [await task for task in (hold, *tasks)] == [[value] for value in range(9)]
    assert [await task for task in deep] == [[10_101], [10_102]]
    assert one.batches == [[0], [1, 3, 5, 7], [101, 102]]
    assert two.batches == [[2, 4, 6, 8]]


async def test_answers_stand_in_the_order_of_the_images_with_their_errors_in_place(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4, decode_threads=3), rig.backbone()
    fake.broken = {5}
    space = await batcher.learn_space(fake, fake.ref())  # type: ignore[arg-type]  # a fake
    images = encoded(*range(20))
    images[3] = BAD
    outcomes = await batcher.embed(images, fake, space)  # type: ignore[arg-type]
    for index, outcome in enumerate(outcomes):
        if index == 3:
            assert isinstance(outcome, InvalidArgument)
        elif index == 5:
            assert isinstance(outcome, Internal)
        else:
            assert isinstance(outcome, Embedded)
            assert outcome.vector.tolist() == [index]
            assert outcome.decode_s > 0
            assert outcome.queue_s >= 0
            assert outcome.forward_s > 0
    assert len(outcomes) == 20
    assert await ask(batcher, fake) == []


async def test_a_decoder_that_breaks_costs_only_the_images_it_had(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    rig.decode.breaks = True
    [outcome] = await ask(batcher, fake, 1)
    assert isinstance(outcome, Internal)
    rig.decode.breaks = False
    assert await ask(batcher, fake, 2) == [2]
    assert batcher.alive()


async def test_cancelled_and_expired_images_never_reach_the_device(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=8), rig.backbone()
    fake.launching.shut()
    hold = asking(batcher, fake, 0)
    await until(lambda: fake.batches)
    soon = time.monotonic() + 0.2
    cancelled = asking(batcher, fake, 1)
    expired = asking(batcher, fake, 2, deadline=soon)
    alive = asking(batcher, fake, 3, deadline=time.monotonic() + 60)
    await until(lambda: batcher.queues.waiting() == 3)
    cancelled.cancel()
    await until(lambda: cancelled.done() and time.monotonic() > soon)
    fake.launching.open()
    assert await hold == [0]
    assert await alive == [3]
    [late] = await expired
    assert isinstance(late, DeadlineExceeded)
    assert "queued" in late.message
    assert fake.batches == [[0], [3]]


async def test_cancelled_and_expired_images_are_not_decoded(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=8), rig.backbone()
    rig.decode.valve.shut()
    hold = asking(batcher, fake, 0)
    await until(lambda: rig.decode.begun)
    soon = time.monotonic() + 0.05
    cancelled = asking(batcher, fake, *range(10, 20), bulk=True)
    expired = asking(batcher, fake, 2, 3, deadline=soon)
    alive = asking(batcher, fake, 4)
    await until(lambda: batcher.queues.waiting() == 13)
    cancelled.cancel()
    await until(lambda: cancelled.done() and time.monotonic() > soon)
    rig.decode.valve.open()
    assert [await hold, await alive] == [[0], [4]]
    assert [type(outcome) for outcome in await expired] == [DeadlineExceeded] * 2
    await until(lambda: not batcher.queues.waiting())
    assert rig.decode.begun == [0, 4]
    assert sorted(value for batch in fake.batches for value in batch) == [0, 4]


async def test_closing_answers_what_is_queued_and_refuses_the_rest(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=2), rig.backbone()
    rig.decode.valve.shut()
    tasks = [asking(batcher, fake, value) for value in range(6)]
    await until(lambda: rig.decode.begun)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await until(lambda: batcher.queues._closing)
    with pytest.raises(Unavailable, match="shutting down"):
        await ask(batcher, fake, 1)
    rig.decode.valve.open()
    assert await asyncio.gather(*tasks) == [[value] for value in range(6)]
    await closing
    assert not batcher.alive()
    with pytest.raises(Unavailable):
        await batcher.on_device(0, lambda: None)


@pytest.mark.parametrize("last", [encoded(2), [BAD]], ids=["fine", "bad"])
async def test_every_device_ends_when_the_last_image_comes_out_of_the_decoder_after_closing(
    rig: Rig, last: list[bytes]
) -> None:
    batcher, fake = rig.batcher(max_batch=2, devices=("cpu", "cpu", "cpu")), rig.backbone()
    space = await batcher.learn_space(fake, fake.ref("x"))  # type: ignore[arg-type]  # a fake
    rig.decode.valve.shut()
    first = asking(batcher, fake, 1)
    task = asyncio.create_task(batcher.embed(last, fake, space))  # type: ignore[arg-type]
    await until(lambda: rig.decode.begun and batcher.queues.waiting() == 1)
    closing = threading.Thread(target=batcher.close, daemon=True)  # a test must not hang with it
    closing.start()
    await until(lambda: batcher.queues._closing)
    rig.decode.valve.let(1)
    assert await first == [1]
    rig.decode.valve.open()
    assert len(await task) == 1
    try:
        await until(lambda: not closing.is_alive())
    finally:  # whatever still waits, so that what follows does not
        with batcher.queues._to_device:
            batcher.queues._to_device.notify_all()


async def test_forwards_that_all_fail_are_no_healthy_server_until_one_works(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    fake.broken = {13}
    for _ in range(HOPELESS):
        assert batcher.alive()
        assert isinstance((await ask(batcher, fake, 13))[0], Internal)
    assert not batcher.alive()
    assert await ask(batcher, fake, 1) == [1]
    assert batcher.alive()


async def test_a_probe_that_works_forgives_and_one_that_fails_does_not(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    fake.broken = {0, 13}
    for _ in range(HOPELESS):
        await ask(batcher, fake, 13)
    blank = np.zeros((2, 2, 3), np.uint8)
    probe = partial(batcher.devices[0].probe, fake, fake.ref(), blank)  # type: ignore[arg-type]
    with pytest.raises(Internal):
        await batcher.on_device(0, probe)
    assert not batcher.alive()
    fake.broken = {13}
    await batcher.on_device(0, probe)
    assert batcher.alive()


async def test_a_mistake_of_the_caller_is_told_and_is_no_failure_of_the_device(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    fake.broken, fake.error = {13}, InvalidArgument("no such layer")
    for _ in range(HOPELESS + 1):
        [outcome] = await ask(batcher, fake, 13)
        assert isinstance(outcome, InvalidArgument)
        assert outcome.message == "no such layer"
    assert batcher.alive()


async def test_a_forward_that_gives_too_few_rows_has_failed(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    whole = fake.launch

    def short(*arguments: object) -> object:
        finish = whole(*arguments)  # type: ignore[arg-type]
        return lambda: finish()[:-1]

    fake.launch = short  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(PATIENCE_S / 6):
        outcomes = await ask(batcher, fake, 1, 2)
    assert [type(outcome) for outcome in outcomes] == [Internal, Internal]
    fake.launch = whole  # type: ignore[method-assign]
    assert await ask(batcher, fake, 3) == [3]


async def test_a_space_is_learned_once_in_the_thread_of_the_first_device(rig: Rig) -> None:
    batcher, fake = rig.batcher(devices=("cpu", "cpu")), rig.backbone()
    learn, threads = fake.learn_space, []

    def watched(ref: object) -> object:
        threads.append(threading.current_thread().name)
        return learn(ref)  # type: ignore[arg-type]

    fake.learn_space = watched  # type: ignore[method-assign, assignment]
    first = await batcher.learn_space(fake, fake.ref())  # type: ignore[arg-type]
    assert await batcher.learn_space(fake, fake.ref()) is first  # type: ignore[arg-type]
    assert threads == ["likewise-device-0"]


async def test_work_on_a_device_raises_what_it_raises_and_hides_bugs(rig: Rig) -> None:
    batcher = rig.batcher(devices=("cpu", "cuda:0"))

    def fail(error: Exception) -> None:
        raise error

    assert await batcher.on_device(1, lambda: threading.current_thread().name) == "likewise-device-1"
    with pytest.raises(InvalidArgument, match="no such layer"):
        await batcher.on_device(0, partial(fail, InvalidArgument("no such layer")))
    with pytest.raises(Internal) as caught:
        await batcher.on_device(1, partial(fail, ValueError("secret")))
    assert "secret" not in caught.value.message
    assert batcher.alive()
