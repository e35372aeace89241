"""Pictures on disk, and a server of which it is known how many images it has embedded."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from likewise import AsyncClient, Client
from likewise.results import Item
from support.pictures import jpeg, photographs
from support.server import ServerProcess, start_server

SIDE = 96


@dataclass
class Counted:
    """A server, and the count of images that went through its network."""

    server: ServerProcess

    @property
    def address(self) -> str:
        return self.server.address

    def embedded(self) -> int:
        events = [json.loads(line) for line in self.server.log.read_text().splitlines() if line.startswith("{")]
        port = [event["port"] for event in events if event.get("event") == "metrics"][-1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            found = re.search(r"^likewise_images_total\{.*\} (\S+)$", reply.read().decode(), re.MULTILINE)
        return int(float(found[1])) if found else 0

    def settled(self, client: Client, collection: str) -> tuple[int, int]:
        """Return (stored, embedded) once neither grows any more."""
        seen: list[tuple[int, int]] = []
        while len(seen) < 4 or len(set(seen[-4:])) > 1:
            time.sleep(0.15)
            seen.append((client.collection(collection).count(), self.embedded()))
        return seen[-1]


StartCounted = Callable[..., Counted]


@pytest.fixture(scope="session")
def start_counted() -> Iterator[StartCounted]:
    """What starts such a server; those that a failed test leaves behind are killed at the end."""
    with ExitStack() as started:

        def start(data: Path, port: int = 0) -> Counted:
            options = ("--metrics-port", "0", "--log-format", "json", "--device", "cpu", "--precision", "fp32")
            return Counted(started.enter_context(start_server(data, *options, port=port)))

        yield start


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory, start_counted: StartCounted) -> Iterator[Counted]:
    running = start_counted(tmp_path_factory.mktemp("counted") / "data")
    yield running
    assert running.server.stop() == 0, running.server.log.read_text()[-2000:]


@pytest.fixture(scope="session")
def lw(counted: Counted) -> Iterator[Client]:
    with Client(counted.address) as client:
        yield client


@pytest.fixture
def stored(counted: Counted) -> Callable[[str], list[Item]]:
    """All items of a collection, by id."""

    async def items(collection: str) -> list[Item]:
        async with AsyncClient(counted.address) as client:
            return [item async for item in (await client.collection(collection)).items()]

    return lambda collection: asyncio.run(items(collection))


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    return home


@pytest.fixture
def name() -> str:
    return f"indexed-{uuid.uuid4().hex[:8]}"


def write_pictures(folder: Path, count: int, classes: int = 2) -> list[str]:
    """Write `count` different JPEG files to `classes` folders; return their relative paths, sorted."""
    sources = list(photographs().values())
    ids: list[str] = []
    for number in range(count):
        image = sources[number % len(sources)]
        step = number // len(sources)
        left, top = (step * 7) % (image.width - SIDE), (step * 13) % (image.height - SIDE)
        item_id = f"class{number % classes}/{number:04}.jpg"
        path = folder / item_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(image.crop((left, top, left + SIDE, top + SIDE)), quality=85))
        ids.append(item_id)
    return sorted(ids)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures in two class folders."""
    folder = tmp_path / "photos"
    write_pictures(folder, 12)
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Enough pictures for something to happen in the middle of indexing them; read only."""
    folder = tmp_path_factory.mktemp("many")
    return folder, write_pictures(folder, 480, classes=3)
