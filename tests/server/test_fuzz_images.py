"""Thousands of damaged and hostile pictures: each gives the right pixels or a coded error, soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from likewise_server.errors import InvalidArgument
from likewise_server.images import ImageLimits, decode, guard
from support.mutations import bombs, exif_in_pieces, in_scans, with_chunks
from support.pictures import jpeg

CASES = 16_000
SLOWEST_S = 20.0  # of any one picture, on a machine that is busy with others
GROWTH = 150 * 2**20  # bytes, over eight thousand pictures
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Decode in two processes, which a crash or a hang would end."""
    folder, half = tmp_path_factory.mktemp("fuzz"), CASES // 2
    running: list[tuple[subprocess.Popen[str], Path]] = []
    for first in (0, half):
        log = folder / f"{first}.log"
        with log.open("w") as errors:
            command = [sys.executable, "-m", "support.decoding", str(first), str(half)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append(
                (
                    subprocess.Popen(
                        command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=TESTS, env=environment
                    ),
                    log,
                )
            )
    outcomes: list[dict[str, Any]] = []
    for process, log in running:
        printed, _ = process.communicate()
        assert process.returncode == 0, f"ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        outcomes.append(json.loads(printed))
    return outcomes


def test_nothing_but_pixels_and_coded_errors_comes_out(found: list[dict[str, Any]]) -> None:
    for outcome in found:
        assert outcome["wrong"] == []
    counts = {name: sum(each["found"].get(name, 0) for each in found) for name in ("pixels", "InvalidArgument")}
    assert sum(sum(each["found"].values()) for each in found) == CASES + len(list(bombs()))
    # Were nearly all refused at the first byte, this would test little.
    assert counts["pixels"] > CASES / 10
    assert counts["InvalidArgument"] > CASES / 10


def test_no_picture_takes_long_and_memory_does_not_grow(found: list[dict[str, Any]]) -> None:
    for outcome in found:
        assert outcome["slowest"][0] < SLOWEST_S, outcome["slowest"]
        assert outcome["grown"] < GROWTH


@pytest.mark.parametrize(("most", "more", "what"), [(100, 101, "pieces of EXIF"), (100, 130, "scans")])
def test_a_jpeg_has_a_hundred_pieces_of_exif_and_scans_at_most(most: int, more: int, what: str) -> None:
    make = exif_in_pieces if "EXIF" in what else in_scans
    guard(ImageLimits())
    assert decode(make(most // 2), ImageLimits()).size == (16, 16)
    with pytest.raises(InvalidArgument, match=f"too many {what}"):
        decode(make(more), ImageLimits())


def test_a_film_behind_a_photograph_is_not_taken_for_scans() -> None:
    guard(ImageLimits())
    data = jpeg(Image.new("RGB", (16, 16))) + b"\xff\xda\0\0" * 300
    assert decode(data, ImageLimits()).size == (16, 16)


def test_parts_are_counted() -> None:
    guard(ImageLimits())
    assert decode(with_chunks(1000), ImageLimits()).size == (16, 16)
    with pytest.raises(InvalidArgument, match="too many parts"):
        decode(with_chunks(3000), ImageLimits())
