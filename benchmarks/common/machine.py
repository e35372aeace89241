"""What a reader must know of the machine and of the code before any figure."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.processes import ROOT

# Load average before the run. Threads wait for one another: a neighbour on one core slows them all.
BUSY = 0.5


def machine_facts(packages: Sequence[str]) -> dict[str, Any]:
    """Return machine, versions of Python and `packages`, the code's own, and the command line."""
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in packages}},
        "likewise": described() or installed("likewise"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "load_average_before": round(os.getloadavg()[0], 2),
        "note": "client, server and generator of load share the cores",
    }


def warn_if_busy(facts: dict[str, Any]) -> None:
    """Say so where the machine had other work before the run."""
    load = facts["load_average_before"]
    if load > BUSY:
        print(f"this machine is busy already (load average {load}): figures will mean little", file=sys.stderr)


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def described() -> str | None:
    """Return what git calls this state of the code, None outside a clone."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--tags"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
