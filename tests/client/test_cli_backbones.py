"""`likewise backbones`, run as a person would: the list as ever, and rankings."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from likewise import Client
from support.backbones import JOINED, OTHER
from support.pictures import digit_images
from support.server import clean_environment

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(pair: Client, tmp_path: Path) -> Run:
    environment = {**clean_environment(), "LIKEWISE_SERVER": pair._async._transport.address, "COLUMNS": "200"}

    def likewise(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "likewise.cli", "backbones", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return likewise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Digits in a folder for each class."""
    root = tmp_path / "digits"
    for number, (data, label) in enumerate(zip(*digit_images(5, classes=3), strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{number}.png").write_bytes(data)
    return root


@pytest.fixture
def name(pair: Client) -> Iterator[str]:
    made = f"cli-{uuid.uuid4().hex[:8]}"
    yield made
    for info in pair.collections():
        if info.name.startswith(made):
            pair.delete_collection(info.name)


def test_the_list_is_what_it_was(run: Run) -> None:
    listed = json.loads(run("--json").stdout)
    assert [one["name"] for one in listed] == ["likewise-tiny", OTHER]
    assert [one["dim"] for one in listed] == [512, 1024]
    table = run().stdout
    assert "fingerprint" in table
    assert "not served" not in table
    everything = run("--all").stdout
    assert "resnet50" in everything
    assert "not served" in everything


def test_options_of_the_list_do_not_go_with_a_command(run: Run, folder: Path) -> None:
    assert "options go behind 'rank'" in run("--json", "rank", folder, status=2).stderr


def test_a_folder_ranks_backbones(run: Run, folder: Path) -> None:
    told: Any = json.loads(run("rank", folder, "--backbone", JOINED, "--backbone", "likewise-tiny", "--json").stdout)
    assert sorted(one["backbone"] for one in told["ranked"]) == ["likewise-tiny", JOINED]
    assert (told["items"], told["classes"], told["errors"]) == (15, 3, {})
    done = run("rank", folder, "--limit", 6)
    assert "ms an image" in done.stdout
    assert OTHER in done.stdout
    assert "6 items of 3 classes" in done.stderr
    assert "is right on" in done.stderr


def test_what_failed_is_said_and_is_the_status(run: Run, folder: Path) -> None:
    (folder / "0" / "broken.png").write_bytes(b"no image")
    done = run("rank", folder, "--backbone", "nope", "--backbone", "likewise-tiny", status=3)
    assert "broken.png: not an image" in done.stderr
    assert "nope: backbone 'nope' is not served" in done.stderr
    assert "15 items" in done.stderr


def test_a_collection_is_ranked_on_those_of_its_pictures_that_are_here(
    run: Run, pair: Client, name: str, folder: Path
) -> None:
    files = sorted(folder.glob("*/*.png"))
    pets = pair.create_collection(name)
    pets.add(files, labels=[file.parent.name for file in files]).raise_for_errors()
    pets.add(digit_images(1, classes=2)[0], labels=["0", "1"], ids=["memory-0", "memory-1"]).raise_for_errors()
    done = run("rank", "--collection", name, "--backbone", "likewise-tiny")
    assert "15 items of 3 classes" in done.stderr
    assert "2 labelled items are no files here, as 'memory-0': the other 15 are ranked on" in done.stderr
    pets.delete(where="uri like '%.png'")
    told = run("rank", "--collection", name, status=1).stderr
    assert "none of its 2 labelled items is a file here, as 'memory-0'" in told
    pets.delete(["memory-0", "memory-1"])
    assert "it has no labels" in run("rank", "--collection", name, status=1).stderr


def test_collections_are_compared(run: Run, pair: Client, name: str) -> None:
    images, labels = digit_images(5, classes=3)
    ids = [f"d{i}" for i in range(15)]
    for suffix, backbone in (("-tiny", "likewise-tiny"), ("-other", OTHER)):
        pair.create_collection(name + suffix, backbone).add(images, labels=labels, ids=ids).raise_for_errors()
    done = run("rank", "--compare", f"{name}-tiny", "--compare", f"{name}-other")
    assert f"{name}-tiny (likewise-tiny)" in done.stdout
    assert f"{name}-other ({OTHER})" in done.stdout
    told = json.loads(run("rank", "--compare", f"{name}-tiny", "--compare", "nowhere", "--json", status=3).stdout)
    assert [one["collection"] for one in told["ranked"]] == [f"{name}-tiny", "nowhere"]
    assert told["ranked"][0]["ms_per_image"] is None
    assert told["ranked"][1]["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "give PATH, --collection or --compare"),
        (("here", "--collection", "c"), 2, "give PATH, --collection or --compare"),
        (("--compare", "c", "--backbone", "b"), 2, "leave --backbone out"),
        (("nowhere",), 1, "there is no nowhere"),
        (("--collection", "nowhere"), 1, "nowhere"),
        (("empty",), 1, "has no labelled pictures"),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert words in run("rank", *arguments, status=status).stderr
