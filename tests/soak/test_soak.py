"""A minute of what `make soak` does for longer: clients at work, a server that is killed, and nothing lost or wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.pictures import ROOT
from support.server import clean_environment

MINUTES = os.environ.get("LIKEWISE_SOAK_MINUTES", "1")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, as Linux has it")
def test_a_server_killed_under_load_loses_nothing_answers_rightly_and_does_not_grow(tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "chaos", "--minutes", MINUTES, "--json", report],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())["soak"]
    assert (found["lost"], found["resurrected"], found["changed"], found["wrong"]) == (0, 0, 0, 0)
    assert found["kills"] + found["terminations"] >= 1
    assert found["checks"] > found["kills"] + found["terminations"]
    for operation in ("upsert", "search", "delete", "label", "embed", "train"):
        assert found["operations"].get(operation), f"{operation} was never tried"
    assert found["flat"]
