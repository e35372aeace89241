"""likewise-tiny compiled once for all tests, by a server that starts without any compiled network."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.server import serving

CXX = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler: {CXX} is not on the PATH")


@dataclass(frozen=True)
class Compiled:
    """What the server left in its data directory, and how it said that it ran the network."""

    folder: Path
    execution: str

    @property
    def key(self) -> str:
        [home] = self.folder.iterdir()
        return home.name

    @property
    def code(self) -> Path:
        return self.folder / self.key / "code"

    def copied_to(self, data: Path) -> Path:
        """Give a server's data directory a copy; return the copy."""
        shutil.copytree(self.folder, data / "compiled")
        return data / "compiled"


def compile_tiny(data: Path) -> Compiled:
    """Start a server that compiles before it serves."""

    async def cold() -> str:
        async with serving(data, compile="before", max_batch=2) as running:
            embedder = running.engine.embedder
            return embedder.execution(embedder.backbones["likewise-tiny"].ref())

    with capture_logs() as records:
        execution = asyncio.run(cold())
    assert execution == "compiled", records
    return Compiled(data / "compiled", execution)
