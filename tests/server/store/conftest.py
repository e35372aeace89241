"""Where stores that are to die live: in memory, if there is such a folder, because each of them syncs a lot."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.powercut import compile_shim

MORE = int(os.environ.get("LIKEWISE_DURABILITY", "1"))
"""How many times the usual number of cases the tests of durability try."""


def _in_memory() -> Iterator[Path]:
    memory = Path("/dev/shm")  # noqa: S108  # a fresh folder in it
    folder = Path(tempfile.mkdtemp(prefix="likewise-", dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


disk = pytest.fixture(_in_memory)
module_disk = pytest.fixture(_in_memory, scope="module")


@pytest.fixture
def more() -> int:
    return MORE


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))
