"""When a batch closes, what is left out of it, and how far decoding runs ahead: the two gates without their threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from likewise_server.backbones.base import Space
from likewise_server.errors import DeadlineExceeded, Unavailable
from likewise_server.pipeline.jobs import Job, Outcome, Replies, Request
from likewise_server.pipeline.queues import Batch, Call, Queues
from support.fakes import FakeBackbone, Rig, ask, asking, encoded, until

Make = Callable[..., Queues]


@pytest.fixture
async def make() -> Make:
    replies = Replies(asyncio.get_running_loop())

    def queues(*, max_batch: int = 4, devices: int = 1, hold: bool = True) -> Queues:
        return Queues(replies, max_batch=max_batch, devices=devices, hold=hold)

    return queues


class Asked:
    """A request that is handed to queues by hand, its images numbered as told."""

    def __init__(
        self, queues: Queues, fake: FakeBackbone, *values: int, layer: str = "", bulk: bool = False, **options: Any
    ) -> None:
        self.future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        ref = fake.ref(layer)
        caller, deadline = options.get("caller", id(self)), options.get("deadline")
        backbone: Any = fake
        request = Request(backbone, Space(str(ref), 1, ref), self.future, [None] * len(values), bulk, caller, deadline)
        self.jobs = [Job(request, index, data) for index, data in enumerate(encoded(*values))]
        queues.put(self.jobs)


def decode(queues: Queues, images: int = 1) -> list[int]:
    """Do what decode threads do with the next images; return their numbers."""
    return [number(job) for _ in range(images) for job in done(queues, queues.next_encoded(1))]


def done(queues: Queues, jobs: list[Job]) -> list[Job]:
    for job in jobs:
        queues.put_decoded(job)
    return jobs


def number(job: Job) -> int:
    return job.data[0]


def batch(queues: Queues) -> tuple[list[int], str] | None:
    """Return the batch that a device would get now, None if it would wait."""
    work = queues.next_work(0, lambda *_: None, wait=False)
    if work is None:
        return None
    assert isinstance(work, Batch)
    return [number(job) for job in work.jobs], work.reason


async def test_where_cores_are_shared_a_batch_waits_for_its_share_of_the_images_in_the_decoder(make: Make) -> None:
    queues = make()
    Asked(queues, FakeBackbone(), 1, 2, 3, 4)
    assert batch(queues) is None
    decode(queues)
    assert batch(queues) is None, "three more are on their way"
    decode(queues)
    assert batch(queues) == ([1, 2], "decoding"), "half for the device, half for the decoder"
    decode(queues)
    assert batch(queues) is None
    decode(queues)
    assert batch(queues) == ([3, 4], "drained")
    assert batch(queues) is None


async def test_several_devices_have_a_share_each(make: Make) -> None:
    queues = make(devices=2)
    Asked(queues, FakeBackbone(), *range(9))
    decode(queues, 2)
    assert batch(queues) is None
    decode(queues)
    assert batch(queues) == ([0, 1, 2], "decoding")


async def test_a_full_batch_waits_for_nothing(make: Make) -> None:
    queues = make(max_batch=2)
    Asked(queues, FakeBackbone(), 1, 2, 3)
    decode(queues, 2)
    assert batch(queues) == ([1, 2], "full")
    decode(queues)
    assert batch(queues) == ([3], "drained")


async def test_a_batch_is_full_at_what_was_measured_to_be_best(make: Make) -> None:
    queues, fake = make(max_batch=4), FakeBackbone()
    fake.best = 2
    Asked(queues, fake, *range(5))
    decode(queues, 4)
    assert batch(queues) == ([0, 1], "full")
    fake.best = 1000
    assert batch(queues) is None, "max_batch counts, where nothing smaller is better"
    decode(queues)
    assert batch(queues) == ([2, 3, 4], "drained")


async def test_an_image_that_never_comes_out_of_the_decoder_is_waited_for_no_longer(make: Make) -> None:
    queues = make()
    Asked(queues, FakeBackbone(), 1, 2, 3, 4)
    decode(queues)
    refused, answered = queues.next_encoded(1)[0], queues.next_encoded(1)[0]
    queues.drop(refused)
    assert batch(queues) is None
    queues.drop(answered)
    assert batch(queues) == ([1], "decoding")


async def test_interactive_images_wait_for_no_bulk_ones_but_take_those_that_are_ready_along(make: Make) -> None:
    queues, fake = make(), FakeBackbone()
    Asked(queues, fake, 1, 2, 3, bulk=True)
    decode(queues)
    assert batch(queues) is None, "bulk waits for bulk"
    Asked(queues, fake, 9)
    assert decode(queues) == [9]
    assert batch(queues) == ([9, 1], "decoding")
    assert batch(queues) is None


async def test_images_of_another_feature_are_not_waited_for(make: Make) -> None:
    queues, fake = make(), FakeBackbone()
    Asked(queues, fake, 1)
    Asked(queues, fake, 2, 3, layer="x")
    Asked(queues, FakeBackbone("other"), 4)
    decode(queues)
    assert batch(queues) == ([1], "drained")


async def test_a_device_that_shares_no_cores_takes_what_is_ready_at_once(make: Make) -> None:
    queues = make(hold=False)
    Asked(queues, FakeBackbone(), 1, 2)
    assert batch(queues) is None
    decode(queues)
    assert batch(queues) == ([1], "decoding")
    decode(queues)
    assert batch(queues) == ([2], "drained")


@pytest.mark.parametrize("hold", [True, False])
async def test_features_take_turns(make: Make, hold: bool) -> None:
    queues, fake = make(max_batch=2, hold=hold, devices=3), FakeBackbone()
    Asked(queues, fake, 1, 2, 3, 4, 5, bulk=True)
    Asked(queues, fake, 11, 12, 13, layer="x")
    Asked(queues, fake, 21, layer="xx")
    decode(queues, 9)
    order = [found[0] for found in iter(lambda: batch(queues), None)]
    assert sorted(map(tuple, order[:3])) == [(1, 2), (11, 12), (21,)]
    assert sorted(map(tuple, order[3:5])) == [(3, 4), (13,)]
    assert order[5:] == [[5]]


async def test_many_features_that_fill_the_read_ahead_close_rather_than_wait_for_each_other(make: Make) -> None:
    queues, fake = make(max_batch=2), FakeBackbone()
    asked = [Asked(queues, fake, index, 100 + index, layer="x" * index) for index in range(6)]
    assert decode(queues, 4) == [0, 1, 2, 3], "callers take turns, so no feature is complete"
    found = batch(queues)  # decoding may not go on now: if the device waited, both would for ever
    assert found == ([0], "decoding")
    left = {number(job) for request in asked for job in request.jobs} - {0}
    while left:
        if queues._may_decode():
            decode(queues)
        for found in iter(lambda: batch(queues), None):
            left -= set(found[0])
    assert queues.waiting() == 0


async def test_decoding_skips_what_nobody_wants_in_time_and_answers_the_late(make: Make) -> None:
    queues, fake = make(), FakeBackbone()
    gone, late = Asked(queues, fake, 1), Asked(queues, fake, 3, deadline=time.monotonic() - 1)
    gone.future.cancel()
    fine = Asked(queues, fake, 4, deadline=time.monotonic() + 60)
    assert decode(queues) == [4]
    [outcome] = await late.future
    assert isinstance(outcome, DeadlineExceeded)
    assert batch(queues) == ([4], "drained"), "what was skipped holds nothing up"
    assert not fine.future.done()
    assert queues.waiting() == 0


async def test_a_batch_leaves_out_what_nobody_wants_in_time_and_answers_the_late(make: Make) -> None:
    queues, fake = make(), FakeBackbone()
    gone, fine = Asked(queues, fake, 1), Asked(queues, fake, 2, deadline=time.monotonic() + 60)
    late = Asked(queues, fake, 3, deadline=time.monotonic() + 0.05)
    decode(queues, 3)
    gone.future.cancel()
    await asyncio.sleep(0.06)
    assert batch(queues) == ([2], "drained")
    [outcome] = await late.future
    assert isinstance(outcome, DeadlineExceeded)
    assert not fine.future.done()


async def test_a_batch_of_which_nothing_is_left_is_no_batch(make: Make) -> None:
    queues = make()
    gone = Asked(queues, FakeBackbone(), 1, 2)
    decode(queues, 2)
    gone.future.cancel()
    assert batch(queues) is None
    assert queues.waiting() == 0


async def test_a_decoder_that_likes_many_gets_those_of_one_backbone(make: Make) -> None:
    queues, one, two = make(max_batch=32), FakeBackbone("one"), FakeBackbone("two")
    Asked(queues, one, 1, 2, 3, bulk=True)
    Asked(queues, two, 11, 12, bulk=True)
    taken = [[number(job) for job in done(queues, queues.next_encoded(8))] for _ in range(5) if queues._encoded]
    assert sorted(value for values in taken for value in values) == [1, 2, 3, 11, 12]
    for values in taken:
        assert len({value // 10 for value in values}) == 1
    assert [value for values in taken for value in values if value < 10] == [1, 2, 3]

    Asked(queues, one, *range(20))
    assert len(queues.next_encoded(8)) == 8


async def test_how_many_wait_and_for_how_long_is_known(make: Make) -> None:
    queues = make(max_batch=32)
    assert queues.waiting() == 0
    assert queues.oldest_wait() == pytest.approx(0, abs=1e-3)
    asked = Asked(queues, FakeBackbone(), 1, 2, 3)
    asked.jobs[0].since -= 100
    assert queues.waiting() == 3
    assert 100 < queues.oldest_wait() < 130
    decode(queues)
    assert queues.waiting() == 3
    assert queues.oldest_wait() < 30, "it waits anew, for a device"
    asked.jobs[0].since -= 200
    assert 200 < queues.oldest_wait() < 230


async def test_other_work_goes_first_and_to_its_own_device(make: Make) -> None:
    queues = make(devices=2)
    Asked(queues, FakeBackbone(), 1)
    decode(queues)
    ran: list[int] = []
    queues.call(1, lambda: ran.append(1))
    assert batch(queues) == ([1], "drained"), "device 0 has no call"
    work = queues.next_work(1, lambda *_: None)
    assert isinstance(work, Call)
    work.work()
    assert ran == [1]


async def test_after_closing_what_is_queued_goes_through_and_then_everybody_ends(make: Make) -> None:
    queues = make(max_batch=1)
    Asked(queues, FakeBackbone(), 1, 2, 3, 4)
    decode(queues)
    queues.close()
    with pytest.raises(Unavailable):
        Asked(queues, FakeBackbone(), 5)
    with pytest.raises(Unavailable):
        queues.call(0, lambda: None)
    assert decode(queues, 3) == [2, 3, 4], "also beyond the read-ahead"
    assert queues.next_encoded(1) == []
    taken = [queues.next_work(0, lambda *_: None) for _ in range(5)]
    assert [number(job) for work in taken[:4] if isinstance(work, Batch) for job in work.jobs] == [1, 2, 3, 4]
    assert taken[4] is None


async def test_decoded_images_ahead_are_bounded_however_many_are_sent(rig: Rig) -> None:
    max_batch, devices, threads = 4, ("cpu", "cuda:0"), 2
    batcher, fake = rig.batcher(max_batch=max_batch, devices=devices, decode_threads=threads), rig.backbone()
    bound = 2 * max_batch * len(devices)
    ahead: list[int] = []
    launch = fake.launch

    def watched(*arguments: Any) -> Any:
        finish = launch(*arguments)
        ahead.append(len(rig.decode.begun) - sum(map(len, list(fake.batches))))
        return finish

    fake.launch = watched  # type: ignore[method-assign, assignment]
    fake.launching.shut()
    bulk = [asking(batcher, fake, *range(1000 * part, 1000 * (part + 1)), bulk=True) for part in range(3)]
    await until(lambda: len(fake.batches) == 2)
    taken = sum(map(len, fake.batches))
    await until(lambda: len(rig.decode.begun) >= taken + bound)
    single = asking(batcher, fake, 5000)
    await asyncio.sleep(0.05)  # in which far more would be decoded, were there no bound
    assert bound <= len(rig.decode.begun) - taken < bound + threads
    fake.launching.open()
    assert await single == [5000]
    assert [await task for task in bulk] == [list(range(1000 * part, 1000 * (part + 1))) for part in range(3)]
    assert len(ahead) == len(fake.batches)
    assert max(ahead) < bound + threads + max_batch  # counted while the other device may have taken more already


@pytest.mark.parametrize("devices", [("cpu",), ("cuda:0",), ("cpu", "cpu")])
async def test_a_storm_of_features_callers_and_cancellations_leaves_nothing_behind(
    rig: Rig, devices: tuple[str, ...]
) -> None:
    batcher, fake = rig.batcher(max_batch=2, devices=devices, decode_threads=3), rig.backbone()
    fake.broken = {7}
    tasks = [
        asking(batcher, fake, *range(part % 9), 200 + part, layer="x" * (part % 5), bulk=part % 3 == 0)
        for part in range(120)
    ]
    await asyncio.sleep(0)
    for task in tasks[::4]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for part, result in enumerate(results):
        if part % 4 == 0:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert isinstance(result, list)
            offset = 10_000 * (part % 5)
            assert [value for value in result if isinstance(value, float)] == [
                value + offset for value in (*range(part % 9), 200 + part) if value != 7
            ]
    await until(lambda: not batcher.queues.waiting() and not batcher.queues._any_coming())
    assert await ask(batcher, fake, 1) == [1]
