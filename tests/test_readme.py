"""Every code block of the README runs, in order, as it stands there (only the port is another)."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.pictures import ROOT, photographs
from support.server import ServerProcess, clean_environment, start_server

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PORT = "50051"


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCKS if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pets/cat, pets/dog and a text file: crops of two photographs."""
    made = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for name, source in (("cat", "chelsea"), ("dog", "coffee")):
        (made / "pets" / name).mkdir(parents=True)
        image = photographs()[source]
        for number in range(1, 9):
            left, top = int(rng.integers(0, image.width // 3)), int(rng.integers(0, image.height // 3))
            part = image.crop((left, top, left + image.width // 2, top + image.height // 2))
            part.save(made / "pets" / name / f"{number}.jpg")
    (made / "pets/readme.txt").write_text("not a picture")
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServerProcess]:
    """The server of the README's first block."""
    [serve] = [body for body in blocks("sh") if body.startswith("likewise serve")]
    options = shlex.split(serve)[2:]
    assert options == ["--data", "likewise-data", "--port", PORT]
    with start_server(folder / "likewise-data") as server:
        yield server


def test_the_python_blocks_run(folder: Path, running: ServerProcess) -> None:
    code = "\n".join(blocks("python")).replace(f"localhost:{PORT}", running.address)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("(3, 512)")
    assert "not an image in a supported format" in lines[1]
    assert lines[2].startswith("1.000 cat")
    assert "('cat', 'dog')" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("cat ")


def test_the_command_lines_run(folder: Path, running: ServerProcess) -> None:
    [tour] = [body for body in blocks("sh") if body.startswith("likewise index")]
    (folder / "bin").mkdir(exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    state = {"XDG_STATE_HOME": str(folder / "state")}
    environment = {**clean_environment(), **state, "LIKEWISE_SERVER": running.address, "PATH": path}
    for line in tour.strip().splitlines():
        done = subprocess.run(
            shlex.split(line), cwd=folder, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert np.load(folder / "animals.npy").shape[0] == 16
    described = subprocess.run(
        ["likewise", "collections", "info", "animals", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert json.loads(described.stdout)["collection"]["count"] == 16


def test_every_block_is_one_that_is_run_or_known() -> None:
    assert {name for name, _ in BLOCKS} == {"console", "sh", "python"}
    console = "\n".join(blocks("console"))
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\$ make (\w+)", console):
        assert f"\n{target}: " in makefile
    extras = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"likewise\[(\w+)\]", TEXT):
        assert f"\n{extra} = [" in extras


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
