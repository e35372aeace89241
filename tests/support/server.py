"""Real servers: in a process of their own, as a user would start them, or in this one, to be looked into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from likewise_server.app import Running

READY_S = 120


@dataclass
class ServerProcess:
    """A running `likewise serve`; its log is in `log`."""

    process: subprocess.Popen[str]
    data: Path
    port: int
    log: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is None:
            self.kill()
        self._finish()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self.process.kill()
        self._finish()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._finish()

    def _finish(self) -> int:
        status = self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()
        return status

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def start_server(
    data: Path, *options: str, port: int = 0, env: dict[str, str] | None = None, plant: str = ""
) -> ServerProcess:
    """Start a server on a free port and wait until it is ready. `plant` is Python that its process runs first."""
    process, log = launch_server(data, *options, port=port, env=env, plant=plant)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(READY_S)
        raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}")
    return ServerProcess(process, data, int(json.loads(line)["port"]), log)


def launch_server(
    data: Path, *options: str, port: int = 0, env: dict[str, str] | None = None, plant: str = ""
) -> tuple[subprocess.Popen[str], Path]:
    """Start a server and wait for nothing; return its process and its log."""
    data.mkdir(parents=True, exist_ok=True)
    log = data.parent / f"{data.name}.log"
    program = ["-c", f"{plant}\nfrom likewise.cli import main\nmain()"] if plant else ["-m", "likewise.cli"]
    command = [sys.executable, *program, "serve", "--data", str(data), "--port", str(port), "--json"]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=data.parent,
            env={**clean_environment(), **(env or {})},
        )
    return process, log


def clean_environment() -> dict[str, str]:
    """The environment without the settings of whoever runs the tests, and with no compiler beside each server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LIKEWISE_")}
    settings = {"LIKEWISE_COMPILE": "off", "LIKEWISE_CACHE_BYTES": "0"}  # the cache would hide what is embedded twice
    return inherited | settings | {"OMP_WAIT_POLICY": "PASSIVE"}


@asynccontextmanager
async def serving(data: Path, **settings: Any) -> AsyncIterator[Running]:
    """Serve in this process, on a free port, in fp32 and without a compiler unless told otherwise."""
    from likewise_server import app  # noqa: PLC0415  # imports torch, which many tests do without
    from likewise_server.settings import Settings  # noqa: PLC0415

    defaults: dict[str, Any] = {"port": 0, "precision": "fp32", "device": "cpu", "compile": "off"}
    running = await app.start(Settings(data=data, **(defaults | settings)))
    try:
        yield running
    finally:
        await running.stop(0)
