"""What a reader must know of the machine and of the run before any figure."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedding.images import ROOT, Photographs


def run_facts(photographs: Photographs) -> dict[str, Any]:
    """Return machine, versions, pictures and the command line."""
    packages = ("torch", "torchvision", "pillow", "grpcio", "litserve")
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "likewise": _described() or _version("likewise"),
        "images": photographs.facts(),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "load_average_before": round(os.getloadavg()[0], 2),
        "note": "client, server and generator of load share the cores",
    }


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _described() -> str | None:
    """Return what git calls this state of the code, None outside a clone."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--tags"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
