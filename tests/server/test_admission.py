"""The budget over all callers: who is let in, who waits, who is told to come back, and that all of it is given back."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest

from likewise_server.engine import admission
from likewise_server.engine.admission import WINDOW_S, Admission, Cost, Rate
from likewise_server.errors import LikewiseError, NotFound, OutOfRange, ResourceExhausted
from support.fakes import BAD, Rig, encoded, until

LIMIT = Cost(items=100, bytes=1000, pixels=10_000)
NOTHING = Cost()


class Clock:
    """Time that passes when told; stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(admission, "time", made)
    return made


def interactive(budget: Admission, items: int = 1, **parts: int) -> AbstractAsyncContextManager[None]:
    return budget.admit(Cost(items, **parts), wait=False, bulk=False)


def bulk(budget: Admission, items: int = 1, **parts: int) -> AbstractAsyncContextManager[None]:
    return budget.admit(Cost(items, **parts), wait=False, bulk=True)


def patient(budget: Admission, items: int = 1, **parts: int) -> AbstractAsyncContextManager[None]:
    return budget.admit(Cost(items, **parts), wait=True, bulk=True)


async def stay(entered: list[str], name: str, place: AbstractAsyncContextManager[None], until_: asyncio.Event) -> None:
    async with place:
        entered.append(name)
        await until_.wait()


@pytest.mark.parametrize(
    ("held", "more"),
    [
        (Cost(95, 10, 10), Cost(6, 10, 10)),
        (Cost(1, 900, 10), Cost(1, 101, 10)),
        (Cost(1, 10, 9900), Cost(1, 10, 101)),
    ],
    ids=["items", "bytes", "pixels"],
)
async def test_each_part_of_the_budget_refuses_with_a_time_to_come_back(held: Cost, more: Cost) -> None:
    budget = Admission(LIMIT)
    async with budget.admit(held, wait=False, bulk=True):
        with pytest.raises(ResourceExhausted, match="retry after") as refused:
            async with budget.admit(more, wait=False, bulk=True):
                pass
        assert refused.value.retry_after_s is not None
        assert 0.1 <= refused.value.retry_after_s <= 30
        assert budget.held == held
        async with interactive(budget, 1):
            assert budget.held == held.plus(Cost(1))
    assert budget.held == NOTHING
    assert budget.refused == more.items
    async with budget.admit(more, wait=False, bulk=True):
        assert budget.held == more


@pytest.mark.parametrize(
    "cost", [Cost(101, 1, 1), Cost(1, 1001, 1), Cost(2, 1, 10_001)], ids=["items", "bytes", "pixels"]
)
@pytest.mark.parametrize("wait", [True, False])
async def test_what_never_fits_is_out_of_range_at_once(cost: Cost, wait: bool) -> None:
    budget = Admission(LIMIT)
    with pytest.raises(OutOfRange, match="send fewer per request"):
        async with budget.admit(cost, wait=wait, bulk=True):
            pass
    assert budget.held == NOTHING


@pytest.mark.parametrize("wait", [True, False])
async def test_one_picture_over_the_pixel_budget_runs_alone_and_is_left_to_max_pixels(wait: bool) -> None:
    budget, entered, leave = Admission(LIMIT), list[str](), asyncio.Event()
    huge = Cost(1, 10, 1_000_000)
    async with budget.admit(huge, wait=wait, bulk=False):
        with pytest.raises(ResourceExhausted):
            async with interactive(budget, pixels=1):
                pass
    async with interactive(budget, pixels=1):
        if wait:
            waiting = asyncio.create_task(stay(entered, "huge", patient(budget, 1, pixels=1_000_000), leave))
            await asyncio.sleep(0.01)
            assert entered == []
        else:
            with pytest.raises(ResourceExhausted):
                async with budget.admit(huge, wait=False, bulk=False):
                    pass
    if wait:
        leave.set()
        await waiting
        assert entered == ["huge"]
    assert budget.held == NOTHING


async def test_the_time_to_come_back_is_that_of_what_is_held_at_the_measured_rate(clock: Clock) -> None:
    budget = Admission(LIMIT, least=1, wait_s=0)
    for _ in range(60):  # ten images a second
        async with bulk(budget, 3):
            clock.now += 0.3
    rate = budget.images_per_s()
    assert rate == pytest.approx(10, rel=0.01)
    async with bulk(budget, 40):
        with pytest.raises(ResourceExhausted) as refused:
            async with bulk(budget, 61):
                pass
    assert refused.value.retry_after_s == pytest.approx(40 / rate)
    async with bulk(budget, 100):
        for _ in range(3):
            with pytest.raises(ResourceExhausted) as refused:
                async with interactive(budget):
                    pass
    assert refused.value.retry_after_s == pytest.approx(100 / rate)


async def test_interactive_images_are_refused_sooner_than_bulk_ones_but_never_the_least() -> None:
    budget = Admission(LIMIT, least=5, wait_s=0)
    async with interactive(budget, 5):
        with pytest.raises(ResourceExhausted):
            async with interactive(budget):
                pass
        async with bulk(budget, 95):
            assert budget.held.items == 100
    async with bulk(budget, 50), interactive(budget, 5):
        assert budget.interactive == 5, "bulk work does not count against it"
    assert (budget.held, budget.interactive) == (NOTHING, 0)


async def test_a_quick_server_lets_in_as_many_interactive_images_as_it_does_in_time(clock: Clock) -> None:
    budget = Admission(LIMIT, least=5, wait_s=0.1)
    for _ in range(60):
        async with bulk(budget, 100):
            clock.now += 0.25
    rate = budget.images_per_s()
    assert rate == pytest.approx(400, rel=0.01)
    async with interactive(budget, int(rate * 0.1)):
        with pytest.raises(ResourceExhausted):
            async with interactive(budget, 2):
                pass
    async with interactive(Admission(LIMIT, least=5, wait_s=0.1), 5):
        pass


async def test_streams_wait_in_line_and_leave_a_quarter_to_those_who_do_not_wait() -> None:
    budget, entered, leave = Admission(LIMIT), list[str](), asyncio.Event()
    stream = asyncio.create_task(stay(entered, "stream", patient(budget, 75), leave))
    other = asyncio.create_task(stay(entered, "other", patient(budget, 1), leave))
    await until(lambda: entered)
    await asyncio.sleep(0)
    assert entered == ["stream"]
    async with interactive(budget, 25):
        assert budget.held.items == 100
        with pytest.raises(ResourceExhausted):
            async with interactive(budget):
                pass
    assert not other.done()
    leave.set()
    await asyncio.gather(stream, other)
    assert entered == ["stream", "other"]
    assert budget.held == NOTHING
    assert budget.refused == 1, "nobody who waits is refused"


async def test_a_stream_with_more_than_its_share_runs_when_nothing_else_does() -> None:
    budget, entered, leave = Admission(LIMIT), list[str](), asyncio.Event()
    leave.set()
    async with interactive(budget):
        task = asyncio.create_task(stay(entered, "all", patient(budget, 100), leave))
        await asyncio.sleep(0)
        assert entered == []
    await task
    assert entered == ["all"]


async def test_giving_up_a_place_in_line_lets_the_next_one_in() -> None:
    budget, entered, leave = Admission(LIMIT), list[str](), asyncio.Event()
    leave.set()
    async with bulk(budget, 60):
        big = asyncio.create_task(stay(entered, "big", patient(budget, 70), leave))
        small = asyncio.create_task(stay(entered, "small", patient(budget, 1), leave))
        await asyncio.sleep(0.01)
        assert entered == [], "a small one does not overtake a big one that waits"
        big.cancel()
        await asyncio.gather(big, return_exceptions=True)
        await small
    assert entered == ["small"]
    assert budget.held == NOTHING


async def test_one_who_gives_up_in_the_moment_of_being_let_in_holds_nothing() -> None:
    budget, entered, leave = Admission(LIMIT), list[str](), asyncio.Event()
    leave.set()
    async with bulk(budget, 100):
        first = asyncio.create_task(stay(entered, "first", patient(budget, 70), leave))
        second = asyncio.create_task(stay(entered, "second", patient(budget, 70), leave))
        await asyncio.sleep(0)
    assert budget.held.items == 70, "the first is let in, and does not know it yet"
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert entered == ["second"]
    assert budget.held == NOTHING


async def test_counts_return_to_zero_whatever_becomes_of_the_work() -> None:
    budget = Admission(LIMIT)

    async def work(error: BaseException | None) -> None:
        async with interactive(budget, 2, bytes=3, pixels=4):
            if error:
                raise error
            await asyncio.sleep(60)

    with pytest.raises(ValueError, match="broke"):
        await work(ValueError("broke"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work(None)
    task = asyncio.create_task(work(None))
    await asyncio.sleep(0)
    assert (budget.held, budget.interactive) == (Cost(2, 3, 4), 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (budget.held, budget.interactive) == (NOTHING, 0)


def test_the_rate_is_that_of_busy_time(clock: Clock) -> None:
    rate = Rate()
    guess = rate.per_s
    rate.done(1)
    assert rate.per_s == guess, "too short to tell"
    for _ in range(100):
        clock.now += 1000  # nothing to do
        rate.resume()
        clock.now += 2 * WINDOW_S
        rate.done(100)
    assert rate.per_s == pytest.approx(100 / (2 * WINDOW_S), rel=0.01)
    for _ in range(100):
        clock.now += 2 * WINDOW_S
        rate.done(0)
    assert 0 < rate.per_s < 1, "a rate of zero could not be divided by"


async def test_requests_that_end_together_all_count(clock: Clock) -> None:
    budget = Admission(LIMIT)
    for _ in range(60):
        async with AsyncExitStack() as together:  # one batch: twenty callers get their answers in the same moment
            for _ in range(20):
                await together.enter_async_context(interactive(budget))
            clock.now += 0.5
        clock.now += 5
    assert budget.images_per_s() == pytest.approx(40, rel=0.01)


async def test_short_busy_times_add_up_to_a_rate(clock: Clock) -> None:
    budget = Admission(LIMIT)
    for _ in range(1000):
        async with interactive(budget):
            clock.now += 0.005
        clock.now += 5
    assert budget.images_per_s() == pytest.approx(200, rel=0.01)


async def test_idle_time_does_not_slow_the_rate_down(clock: Clock) -> None:
    budget = Admission(LIMIT)
    for _ in range(60):
        clock.now += 3600
        async with bulk(budget, 100):
            clock.now += 0.5
    assert budget.images_per_s() == pytest.approx(200, rel=0.01)


async def test_embedding_counts_images_bytes_and_the_pixels_of_their_headers(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    embedder = rig.embedder(batcher, fake)
    rig.decode.valve.shut()
    task = asyncio.create_task(embedder.embed([*encoded(1, 2), b"x" * 1000]))
    await until(lambda: rig.decode.begun)
    # Eight pixels a byte where there is no header, and never more of one image than would be decoded.
    assert embedder.admission.held == Cost(3, 1004, 16 + 16 + 1000)
    rig.decode.valve.open()
    await task
    assert embedder.admission.held == NOTHING


@pytest.mark.parametrize("limit", [{"items": 2}, {"bytes": 5}, {"pixels": 40}, {"least": 2, "wait_s": 0.0}])
async def test_embedding_refuses_over_the_budget_and_recovers(rig: Rig, limit: dict[str, Any]) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    embedder = rig.embedder(batcher, fake, **limit)
    await embedder.space()
    rig.decode.valve.shut()
    task = asyncio.create_task(embedder.embed(encoded(1, 2)))
    await until(lambda: rig.decode.begun)
    with pytest.raises(ResourceExhausted) as refused:
        await embedder.embed(encoded(3))
    assert refused.value.retry_after_s
    rig.decode.valve.open()
    assert (await task).vectors.tolist() == [[1], [2]]
    assert (await embedder.embed(encoded(3))).vectors.tolist() == [[3]]
    assert rig.decode.begun == [1, 2, 3]


async def test_embedding_gives_back_its_place_after_errors_cancellation_and_deadlines(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    embedder = rig.embedder(batcher, fake)
    fake.broken = {13}
    broken = await embedder.embed([*encoded(13, 1), BAD])
    assert sorted(broken.errors) == [0, 2]
    assert all(isinstance(error, LikewiseError) for error in broken.errors.values())
    assert broken.vectors.tolist() == [[0], [1], [0]]
    assert (embedder.admission.held, embedder.admission.interactive) == (NOTHING, 0)

    late = await embedder.embed(encoded(1, 2), deadline=0.0)
    assert sorted(late.errors) == [0, 1]
    rig.decode.valve.shut()
    task = asyncio.create_task(embedder.embed(encoded(3, 4)))
    await until(lambda: embedder.admission.held.items == 2)
    assert embedder.admission.interactive == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (embedder.admission.held, embedder.admission.interactive) == (NOTHING, 0)
    with pytest.raises(NotFound):
        await embedder.embed(encoded(1), rig.backbone("absent").ref())
    assert embedder.admission.held == NOTHING


async def test_a_stream_of_requests_over_the_budget_is_never_refused(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    embedder = rig.embedder(batcher, fake, items=8)
    most = 0

    async def one(value: int) -> list[list[float]]:
        nonlocal most
        result = await embedder.embed(encoded(value), wait=True)
        most = max(most, embedder.admission.held.items)
        vectors: list[list[float]] = result.vectors.tolist()
        return vectors

    assert await asyncio.gather(*map(one, range(200))) == [[[value]] for value in range(200)]
    assert most <= 6
