"""The power fails at any moment, and what was not synced is lost or torn; what was acknowledged must be there."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from likewise_server.errors import LikewiseError
from likewise_server.store.embedded import EmbeddedStore
from support.lives import CYCLE, World, check, script, worlds
from support.powercut import Record, cut, needs_c, records
from support.victim import lives

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 2 * len(CYCLE)
CUTS = 200


def lived(disk: Path, shim: Path, seed: int) -> list[Record]:
    """Return what a life did to the disk."""
    recording = {"LD_PRELOAD": str(shim), "DISK_ROOT": str(disk / "0"), "DISK_LOG": str(disk / "log")}
    ((life,), said) = lives(disk, seed, STEPS, ["none"], **recording)
    assert life.status == 0, said
    assert "?" not in life.acks
    happened = records(disk / "log")
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return happened


@functools.cache
def possible(seed: int) -> list[World]:
    return worlds(script(seed, STEPS))


def survives(disk: Path, seed: int, happened: list[Record], keep: float, luck: random.Random) -> None:
    """Cut the power after what happened; assert that the store opens with all that was acknowledged."""
    acknowledged = sum(each.kind == "W" and each.path.endswith(".acks") for each in happened)
    left = disk / "left"
    cut(happened, keep, luck, disk / "0", left)
    try:
        with EmbeddedStore(left) as store:
            # The step under way may be there, as a whole.
            check(store, possible(seed)[acknowledged : acknowledged + 2])
    finally:
        shutil.rmtree(left)


@needs_c
def test_nothing_acknowledged_is_lost_in_a_power_cut(disk: Path, shim: Path, more: int) -> None:
    for seed in range(more):
        happened = lived(disk, shim, seed)
        assert {each.kind for each in happened} == set("CWTSRU")
        luck = random.Random(seed)
        for _ in range(CUTS):
            survives(disk, seed, happened[: luck.randint(0, len(happened))], luck.choice([0, 0.3, 0.7, 1]), luck)


@needs_c
@pytest.mark.parametrize("forgotten", [".db-wal", ".db"])
def test_a_sync_that_was_forgotten_would_be_noticed(disk: Path, shim: Path, forgotten: str) -> None:
    happened = [each for each in lived(disk, shim, 0) if each.kind != "S" or not each.path.endswith(forgotten)]
    lost = 0
    for end in range(len(happened), 0, -29):
        try:
            survives(disk, 0, happened[:end], 0, random.Random(end))
        except (AssertionError, LikewiseError):
            lost += 1
    assert lost


@needs_c
def test_new_folders_are_synced_into_those_they_stand_in(disk: Path, shim: Path) -> None:
    log = disk / "log"
    new = disk / "new"
    done = subprocess.run(
        [sys.executable, "-c", f"from likewise_server.store import open_store; open_store('{new / 'deep'}').close()"],
        env={**os.environ, "LD_PRELOAD": str(shim), "DISK_ROOT": str(disk), "DISK_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {str(disk), str(new), str(new / "deep")} <= {each.path for each in records(log) if each.kind == "S"}
