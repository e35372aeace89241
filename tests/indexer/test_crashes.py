"""kill -9 of the server and of the indexer in the middle: nothing is lost, nothing is embedded twice."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from likewise import AsyncClient, Client
from likewise.errors import LikewiseError
from likewise_indexer import Summary, run
from likewise_indexer.sources import open_source

COMMAND = "import typer; from likewise_indexer.cli import index; app = typer.Typer(); app.command()(index); app()"
MIDDLE = 64  # items stored when the blow falls


def journaled(path: str | Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        return [item_id for (item_id,) in db.execute("SELECT id FROM items WHERE status = 'done'")]
    finally:
        db.close()


async def until_stored(address: str, collection: str, count: int) -> None:
    async with AsyncClient(address, timeout=5, retries=0) as client:
        while True:
            try:
                if await (await client.collection(collection)).count() >= count:
                    return
            except LikewiseError:
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.01)


def begin(
    many: tuple[Path, list[str]], server: str, collection: str, journal: Path, **options: Any
) -> asyncio.Task[Summary]:
    work = run(open_source(many[0]), collection=collection, server=server, journal=journal, progress=False, **options)
    return asyncio.create_task(work)


async def test_a_killed_server_loses_nothing_and_embeds_nothing_twice(
    tmp_path: Path, many: tuple[Path, list[str]], start_counted: Callable[..., Any]
) -> None:
    impatient, patient, total = tmp_path / "impatient.sqlite", tmp_path / "patient.sqlite", len(many[1])
    first = await asyncio.to_thread(start_counted, tmp_path / "data")
    stopping = begin(many, first.address, "a", impatient, patience_s=2)
    waiting = begin(many, first.address, "b", patient)
    await asyncio.gather(*(until_stored(first.address, name, MIDDLE) for name in "ab"))
    first.server.kill()

    # One run gives up and says so; what it has written down is what was acknowledged.
    stopped = await stopping
    assert stopped.exit_code == 1
    assert "no likewise server answers" in stopped.stopped
    acknowledged = journaled(impatient)
    assert 0 < len(acknowledged) == stopped.new < total

    # The other one waits for the server to come back, and goes on.
    second = await asyncio.to_thread(start_counted, tmp_path / "data", first.server.port)
    finished = await waiting
    assert (finished.exit_code, finished.failed, finished.uploaded) == (0, 0, total)

    # Nothing that was acknowledged is lost, and running again embeds exactly the rest.
    async with AsyncClient(second.address, retries=60) as client:
        assert await (await client.collection("b")).count() == total
        collection = await client.collection("a")
        assert None not in await collection.get(acknowledged)
        stored, before = await collection.count(), second.embedded()
        again = await begin(many, second.address, "a", impatient)
        assert (again.exit_code, again.new) == (0, total - stored)
        assert again.skipped == len(acknowledged)
        assert again.unchanged == stored - len(acknowledged)
        assert second.embedded() - before == total - stored
        assert sorted([item.id async for item in collection.items()]) == many[1]
    assert second.server.stop() == 0


def start_indexer(many: tuple[Path, list[str]], counted: Any, name: str, journal: Path) -> subprocess.Popen[str]:
    arguments = [str(many[0]), "-c", name, "--server", counted.address, "--journal", str(journal)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_middle(lw: Client, name: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if name in [info.name for info in lw.collections()] and lw.collection(name).count() >= MIDDLE:
            return
        time.sleep(0.01)
    raise AssertionError("the indexer did not get going")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_indexer_embeds_nothing_twice(
    blow: signal.Signals, tmp_path: Path, many: tuple[Path, list[str]], counted: Any, lw: Client, name: str, stored: Any
) -> None:
    journal, total = tmp_path / "journal.sqlite", len(many[1])
    with start_indexer(many, counted, name, journal) as process:
        wait_for_middle(lw, name)
        process.send_signal(blow)
        out, errors = process.communicate(timeout=60)
    if blow is signal.SIGINT:
        assert process.returncode == 1
        assert "stopped: interrupted\nthe same command continues" in out
        assert "stopping when what is under way is done" in errors
    survived, before = counted.settled(lw, name)
    acknowledged = len(journaled(journal))
    assert acknowledged <= survived < total
    with start_indexer(many, counted, name, journal) as process:
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"{total - survived} new, 0 updated, {survived - acknowledged} unchanged" in out
    assert counted.embedded() - before == total - survived
    assert [item.id for item in stored(name)] == many[1]
    lw.delete_collection(name)
