"""`likewise serve` in a process of its own, with the settings that measuring asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.processes import Child, wait_until_idle
from likewise_server.settings import Settings

# A cache of embeddings would answer for the network; the messages differ anyway, but looking them up costs too.
WITHOUT_CACHE = {"cache_bytes": "0"}


class LikewiseServer:
    """A running server; `address` is where it listens."""

    def __init__(
        self,
        backbone: str,
        weights: Path,
        precision: str,
        folder: Path,
        *,
        data: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        command = [sys.executable, "-m", "likewise.cli", "serve", "--data", str(data or folder / "data"), "--port", "0"]
        command += ["--json", "--backbone", backbone, "--weights-dir", str(weights), "--precision", precision]
        command += ["--device", "cpu", "--log-level", "warning"]
        for name, value in WITHOUT_CACHE.items():
            if name in Settings.model_fields:
                command += ["--set", f"{name}={value}"]
        self.child = Child([*command, *options], folder / "server.log")
        self.command = ["likewise", *command[3:], *options]
        self.address = f"127.0.0.1:{self.child.line()['port']}"

    @property
    def pid(self) -> int:
        """The server's process."""
        return self.child.process.pid

    def settle(self, patience: float) -> bool:
        """Wait until nothing goes on in the background; return whether that is so."""
        return wait_until_idle(self.pid, patience=patience)
