"""The interpreter of the peers: a virtual environment of its own, because milvus-lite brings its own FAISS.

It is made when first needed, of the extra `search-bench` in pyproject.toml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from common.processes import ROOT

PEERS = ("hnswlib", "milvus")
FOLDER = ROOT / "build" / "search-peers"
EXTRA = "search-bench"
LAST = 300  # characters of what a failed installation said


def interpreter(folder: Path = FOLDER) -> Path:
    """Return the peers' Python, making its environment if need be. Raises RuntimeError where that fails."""
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}") or shutil.which("uv")
        if uv is None:
            raise RuntimeError("there is no uv to install them with: pip install uv")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = project["optional-dependencies"][EXTRA]
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *wanted])
        stamp.touch()
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-LAST:]}")
