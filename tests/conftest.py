"""Fixtures for all tests: one real server for those that only ask, and clients of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from likewise import Client
from likewise.sync import Collection
from support.pictures import SHARED
from support.server import ServerProcess, start_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs the shared material where it is not."""
    if (SHARED / "MANIFEST.md").exists():
        return
    skip = pytest.mark.skip(reason=f"no shared test material at {SHARED} (set LIKEWISE_SHARED)")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the bundled backbone in fp32, shared by all tests that do not harm it."""
    running = start_server(tmp_path_factory.mktemp("server") / "data", "--precision", "fp32")
    yield running
    assert running.stop() == 0, running.log.read_text()[-2000:]


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server with the bundled backbone and another one, shared likewise."""
    from support.backbones import OTHER, write_weights  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("pair")
    options = ["--precision", "fp32", "--backbone", "likewise-tiny", "--backbone", OTHER]
    running = start_server(folder / "data", *options, "--weights-dir", str(write_weights(folder / "weights")))
    with Client(running.address) as connected:
        yield connected
    assert running.stop() == 0, running.log.read_text()[-2000:]


@pytest.fixture
def collection(client: Client) -> Iterator[Collection]:
    """An empty collection of the bundled backbone, gone afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield client.create_collection(name)
    client.delete_collection(name)


@pytest.fixture
def photo_files(tmp_path: Path) -> list[Path]:
    """Sixteen JPEG files of photographs."""
    from support.pictures import photograph_jpegs  # noqa: PLC0415

    files: list[Path] = []
    for number, data in enumerate(photograph_jpegs()):
        path = tmp_path / f"photo-{number:02}.jpg"
        path.write_bytes(data)
        files.append(path)
    return files
