"""Commands as people type them, against a server of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.server import ServerProcess, clean_environment


class Place:
    """A server of its own, a folder with pictures, and commands that run in it."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {**clean_environment(), "LIKEWISE_SERVER": self.server.address, "COLUMNS": "200"}
        command = [sys.executable, "-m", "likewise.cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: object) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)
