"""Writes take turns with searches, and are not kept waiting by them for long."""

from __future__ import annotations

import asyncio
import time

import pytest

from likewise_server.engine.precedence import FEW, LONGEST_S, QUIET_S, Precedence

MANY = FEW + 1


async def write(precedence: Precedence, seconds: float = 0.0, items: int = MANY) -> float:
    """Write for so long; return how long that had to wait."""
    asked = time.monotonic()
    async with precedence.writing(items):
        waited = time.monotonic() - asked
        await asyncio.sleep(seconds)
    return waited


async def test_without_searches_writes_go_side_by_side() -> None:
    precedence, inside, most = Precedence(), 0, 0

    async def one() -> None:
        nonlocal inside, most
        async with precedence.writing(MANY):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(one() for _ in range(4)))
    assert most == 4


async def test_while_there_are_searches_writes_go_one_at_a_time_and_pause_as_long_as_they_take() -> None:
    precedence = Precedence()
    with precedence.searching():
        waits = await asyncio.gather(*(write(precedence, 0.05) for _ in range(3)))
    assert waits[0] < 0.05, "the first had none before it"
    assert waits[1] >= 0.05 + 0.05
    assert waits[2] >= waits[1] + 0.05 + 0.05


async def test_small_writes_go_side_by_side_always() -> None:
    precedence = Precedence()
    with precedence.searching():
        await write(precedence, 0.05)
        assert max(await asyncio.gather(*(write(precedence, 0.05, FEW) for _ in range(5)))) < 0.05


async def test_a_write_goes_on_as_soon_as_the_searches_are_over() -> None:
    precedence = Precedence()
    with precedence.searching():
        await write(precedence, LONGEST_S)
        waiting = asyncio.create_task(write(precedence))
        await asyncio.sleep(0.02)
        assert not waiting.done()
    assert QUIET_S / 2 <= await waiting < LONGEST_S


async def test_a_long_write_does_not_make_the_next_one_wait_as_long() -> None:
    precedence = Precedence()
    with precedence.searching():
        await write(precedence, 2 * LONGEST_S)
        assert await write(precedence) < 2 * LONGEST_S


async def test_a_search_that_fails_is_over_too() -> None:
    precedence = Precedence()
    with pytest.raises(ZeroDivisionError), precedence.searching():
        1 / 0  # noqa: B018
    await asyncio.sleep(2 * QUIET_S)
    assert await write(precedence) < QUIET_S
