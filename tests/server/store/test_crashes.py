"""The process is killed at every step of everything that writes; what was acknowledged must be there, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from likewise_server.store import NewItem, failpoints
from likewise_server.store.embedded import EmbeddedStore
from support.lives import CYCLE, DIM, check, script, worlds
from support.victim import Life, lives

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = 2 * len(CYCLE) + 1
WRITER = ("before_commit", "after_commit", "after_apply")
SEGMENT = ("build", "write", "fsync", "rename", "folder_fsync", "row", "collect")
BACKUP = ("create", "rows", "fsync", "rename")


def _at(op: str, nth: int = 1) -> int:
    """Return the number of a step of this kind, in the second cycle: there is something to lose by then."""
    return [n for n, step in enumerate(script(0, STEPS)) if step.op == op and n > len(CYCLE)][nth - 1]


KILLS = [
    *(
        f"{_at(op)}/writer.{step}"
        for op in ("create", "upsert", "relabel", "delete", "save_head", "delete_head", "alter", "drop")
        for step in WRITER
    ),
    # A build beside the first segment, one that merges, one after a restart, and one of what was restored.
    *(f"{_at('checkpoint', nth)}/segment.after_{step}" for nth in (1, 2, 3) for step in SEGMENT),
    *(f"{_at('reopen') - 1}/segment.after_{step}" for step in SEGMENT),
    f"{_at('search', 2)}/quarantine.after_rename",
    *(f"{_at('backup')}/backup.after_{step}" for step in BACKUP),
    *(f"{_at('restore')}/restore.{step}" for step in ("before_commit", "after_commit")),
    *(f"0/schema.{step}" for step in ("before_commit:1", "after_commit:1", "before_commit:2", "after_commit:2")),
]


@pytest.fixture(scope="module")
def ended(module_disk: Path) -> dict[str, Life]:
    """What the kills left behind."""
    found, _ = lives(module_disk, 0, STEPS, [f"kill={kill}" for kill in KILLS])
    return dict(zip(KILLS, found, strict=True))


@pytest.mark.parametrize("kill", KILLS)
def test_nothing_acknowledged_is_lost_and_nothing_else_stays(ended: dict[str, Life], kill: str) -> None:
    life = ended[kill]
    assert life.status == -signal.SIGKILL
    with EmbeddedStore(life.data) as store:
        # The step under way may have been done: it is there as a whole or not at all.
        possible = worlds(script(0, STEPS))[len(life.acks) : len(life.acks) + 2]
        world = check(store, possible)
        if "c" in world.collections:
            store.upsert("c", [NewItem("after", np.ones(DIM, np.float32))], fingerprint="f")
            store.checkpoint()
            assert store.fsck().problems == [], "nor is any file left that no row names"
    assert not [path for path in (life.data / "segments").iterdir() if path.suffix == ".tmp"]


def test_every_failpoint_is_tried() -> None:
    assert {kill.partition("/")[2].partition(":")[0] for kill in KILLS} == failpoints.NAMES


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    failpoints._armed.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    failpoints._armed.cache_clear()


def test_a_failpoint_that_does_not_exist_is_an_error(armed: pytest.MonkeyPatch) -> None:
    armed.setenv(failpoints.SWITCH, "writer.after_comit")
    with pytest.raises(ValueError, match=r"no failpoint 'writer\.after_comit'"):
        failpoints.hit("writer.after_commit")


def test_failpoints_are_dead_without_the_switch(tmp_path: Path) -> None:
    """Neither another spelling of the variable nor a settings file arms them."""
    (tmp_path / "likewise.toml").write_text('failpoints = "writer.before_commit"\n')
    environment = {key: value for key, value in os.environ.items() if key != failpoints.SWITCH}
    code = (
        "from likewise_server.store import failpoints\n"
        "for name in failpoints.NAMES: failpoints.hit(name)\n"
        "print('alive')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "LIKEWISE_FAILPOINT": "writer.before_commit"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "alive\n", done.stderr
