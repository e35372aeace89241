"""Every code block of docs/search.md runs, in order, as it stands there (only the port is another)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.pictures import ROOT, photographs
from support.server import clean_environment, start_server

TEXT = (ROOT / "docs/search.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pets/cat and pets/dog: crops of two photographs."""
    for name, source in (("cat", "chelsea"), ("dog", "coffee")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        image = photographs()[source]
        for number in range(1, 6):
            box = (number * 4, number * 2, image.width - number * 3, image.height - number)
            image.crop(box).save(tmp_path / "pets" / name / f"{number}.jpg")
    return tmp_path


def test_the_page_runs(folder: Path) -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "sh"}
    with start_server(folder / "data") as server:
        environment = {**clean_environment(), "LIKEWISE_SERVER": server.address}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        code = "\n".join(body for kind, body in BLOCKS if kind == "python").replace("localhost:50051", server.address)
        lines = [line for kind, body in BLOCKS if kind == "sh" for line in body.strip().splitlines()]
        for command in [[sys.executable, "-W", "error", "-c", code], *map(shlex.split, lines)]:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (folder / "duplicates.html").read_text().count("<img ") >= 4
    assert len((folder / "duplicates.csv").read_text().splitlines()) >= 5
