"""Writes and syncs fail, as on a full or broken disk: nothing acknowledged is lost, searches and later writes go on."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from likewise_server.store import NewItem
from likewise_server.store.embedded import EmbeddedStore
from support.lives import CYCLE, DIM, after, check, script
from support.powercut import needs_c
from support.victim import lives

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 2 * len(CYCLE)
FAULTS = 12
CALLS = {"w": 1000, "s": 140}  # about as many as a life of so many steps makes


@needs_c
@pytest.mark.parametrize("kind", ["w", "s"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_costs_only_what_it_refuses(disk: Path, shim: Path, more: int, kind: str, error: int) -> None:
    luck = random.Random(error)
    count = FAULTS * more
    faults = [f"fail={kind}:{luck.randint(1, CALLS[kind])}:{luck.choice([1, 3, 20])}:{error}" for _ in range(count)]
    shimmed = {"LD_PRELOAD": str(shim), "DISK_ROOT": str(disk)}
    ended, lines = lives(disk, 0, STEPS, faults, **shimmed)
    assert [life.status for life in ended] == [0] * count, lines
    said = [line for line in lines if line[:1].isdigit()]
    full = kind == "w" and error == errno.ENOSPC  # at a sync it could be anything
    wanted = "RESOURCE_EXHAUSTED The disk is full" if full else "UNAVAILABLE The disk failed"
    assert sum(wanted in line for line in said) > count / 4, "the faults were met"
    codes = {line.split()[2] for line in said}
    assert codes <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS", "NOT_FOUND", "INVALID_ARGUMENT"}
    refused = {line.split()[1] for line in said if "The disk" in line}
    assert "upsert" in refused
    assert "search" not in refused, "reading goes on"
    for life in ended:
        with EmbeddedStore(life.data) as store:
            world = check(store, after(script(0, STEPS), life.acks))
            if "c" in world.collections:
                item = NewItem("now there is room", np.ones(DIM, np.float32))
                assert store.upsert("c", [item], fingerprint="f") == ["created"]
