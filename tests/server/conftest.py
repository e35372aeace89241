"""Fixtures of the tests that look into the server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import structlog

from support.compiling import Compiled, compile_tiny
from support.fakes import Rig

# Its own choice, tracebacks with all locals, takes a second for each forward that a test breaks.
plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[structlog.processors.add_log_level, plain])


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Fakes around a batcher; all that they hold is let go at the end."""
    made = Rig()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """likewise-tiny, compiled in fp32; ask for it under `needs_compiler`, and change only copies of it."""
    return compile_tiny(tmp_path_factory.mktemp("compiled"))
