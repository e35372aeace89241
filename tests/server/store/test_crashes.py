"""The process is killed at every step of a write and of a checkpoint; what was acknowledged must be there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from contract.store_model import Model, check_search
from likewise_server.store import NewItem
from likewise_server.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from pathlib import Path

# Prints each batch that was acknowledged. Batch i changes item 0, deletes one and adds some.
VICTIM = """
import sys
import numpy as np
from likewise_server.store import NewItem, open_store

store = open_store(sys.argv[1])
store.create_collection("c", dim=4, fingerprint="f", request_id="once")
for batch in range(6):
    rng = np.random.default_rng(batch)
    ids = ["0", *(f"{batch}-{n}" for n in range(20))]
    store.upsert("c", [NewItem(i, rng.normal(size=4).astype("f4"), str(batch)) for i in ids], fingerprint="f")
    print("upserted", batch, flush=True)
    store.delete("c", [f"{batch}-7"])
    print("deleted", batch, flush=True)
    store.search("c", np.ones((1, 4), "f4"), 3)
    if batch % 2:
        store.checkpoint()
        print("checkpointed", batch, flush=True)
print("done", flush=True)
"""
STEPS = [
    "writer.before_commit:4",
    "writer.after_commit:4",
    "writer.after_apply:4",
    *(
        f"segment.{step}:{number}"
        for step in (
            "after_build",
            "after_write",
            "after_fsync",
            "after_rename",
            "after_folder_fsync",
            "after_row",
            "after_collect",
        )
        for number in (1, 2)
    ),
]


def run(data: Path, failpoint: str) -> list[str]:
    environment = {**os.environ, "LIKEWISE_FAILPOINTS": failpoint, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(data)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "done" not in done.stdout
    return done.stdout.splitlines()


def expected(batches: int, *, deleted: int) -> Model:
    model = Model("cosine")
    for batch in range(batches):
        rng = np.random.default_rng(batch)
        for item_id in ["0", *(f"{batch}-{n}" for n in range(20))]:
            model.upsert(NewItem(item_id, rng.normal(size=4).astype(np.float32), str(batch)))
        if batch < deleted:
            del model.items[f"{batch}-7"]
    return model


@pytest.mark.parametrize("failpoint", STEPS)
def test_nothing_acknowledged_is_lost_and_nothing_else_stays(tmp_path: Path, failpoint: str) -> None:
    lines = run(tmp_path, failpoint)
    upserted = sum(line.startswith("upserted") for line in lines)
    deleted = sum(line.startswith("deleted") for line in lines)
    # The write under way may have been committed: acknowledged or not, it is there as a whole or not at all.
    possible = [expected(upserted, deleted=deleted)]
    if upserted == deleted:
        possible.append(expected(upserted + 1, deleted=deleted))
    else:
        possible.append(expected(upserted, deleted=deleted + 1))
    queries = np.random.default_rng(9).normal(size=(5, 4)).astype(np.float32)
    with EmbeddedStore(tmp_path) as store:
        ids = {item.id for item in store.list_items("c", page_size=1000)[0]}
        (model,) = [each for each in possible if set(each.items) == ids]
        check_search(model, store.search("c", queries, 200), queries, 200)
        report = store.fsck()
        assert report.problems == []
        store.upsert("c", [NewItem("after", np.ones(4, np.float32))], fingerprint="f")
        store.checkpoint()
        assert store.fsck().problems == [], "nor is any file left that no row names"
        assert store.count("c") == len(ids) + 1


def test_a_kill_while_a_bad_segment_is_set_aside(tmp_path: Path) -> None:
    run(tmp_path, "segment.after_collect:2")
    (file,) = (tmp_path / "segments").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    environment = {**os.environ, "LIKEWISE_FAILPOINTS": "quarantine.after_rename"}
    code = VICTIM.replace("for batch in range(6):", "store.search('c', np.ones((1, 4), 'f4'), 3)\nfor batch in ():")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with EmbeddedStore(tmp_path) as store:
        assert len(store.search("c", np.ones((1, 4), np.float32), 1000).hits[0]) == store.count("c") == 77
        store.checkpoint()
        assert store.fsck().problems == []
