"""Bits flip and files end early, anywhere: a coded error or the right answer, and fsck names what is wrong."""

from __future__ import annotations

import random
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from contract.store_model import Model, answers
from likewise_server.errors import LikewiseError
from likewise_server.store import NewItem, Store
from likewise_server.store.backup import backup, restore, verify
from likewise_server.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIM = 16
QUERIES = np.random.default_rng(3).normal(size=(3, DIM)).astype(np.float32)
BLOBS = [np.random.default_rng(seed).bytes(5000) for seed in range(3)]
TRIALS = 120


@pytest.fixture
def whole(disk: Path) -> tuple[Path, Model]:
    """A data directory of a store that was closed, and what it holds."""
    rng = np.random.default_rng(0)
    model = Model("cosine")
    items = [
        NewItem(f"i{n:03}", rng.normal(size=DIM).astype(np.float32), f"label {n % 7}", {"n": n, "pad": "x" * 200})
        for n in range(150)
    ]
    with EmbeddedStore(disk / "whole") as store:
        store.create_collection("c", dim=DIM, fingerprint="f")
        store.upsert("c", items, fingerprint="f")
        for blob in BLOBS:
            store.save_head("c", "h", "knn", {"classes": ["a", "b"]}, blob)
    for item in items:
        model.upsert(item)
    return disk / "whole", model


def damage(file: Path, luck: random.Random) -> None:
    """Flip a bit, put a sector of zeros or noise somewhere, or cut the end off."""
    data = bytearray(file.read_bytes())
    at = luck.randrange(len(data))
    kind = luck.choice(["bit", "bit", "bit", "zeros", "noise", "end"])
    if kind == "bit":
        data[at] ^= 1 << luck.randrange(8)
    elif kind == "end":
        del data[at:]
    else:
        at -= at % 512
        piece = bytes(512) if kind == "zeros" else luck.randbytes(512)
        data[at : at + 512] = piece[: len(data) - at]
    file.write_bytes(data)


def tried(what: Callable[[], Any]) -> Any:
    """Return what is found, None for a coded error; anything else is a crash."""
    try:
        return what()
    except LikewiseError:
        return None


def wrong(store: Store, model: Model) -> list[str]:
    """Ask for everything; return what was answered wrongly."""
    faults = []
    listed = tried(lambda: store.list_items("c", page_size=1000, vectors=True)[0])
    if listed is not None:
        known = model.items
        if any(
            i.id not in known
            or (i.label, i.attributes, i.uri, i.content_hash)
            != (known[i.id].label, known[i.id].attributes, known[i.id].uri, known[i.id].content_hash)
            for i in listed
        ):
            faults.append("texts")
        if len(listed) != len(known):
            faults.append("how many")
        if any(i.id in known and i.vector.tobytes() != known[i.id].vector.tobytes() for i in listed):
            faults.append("vectors")
    found = tried(lambda: store.search("c", QUERIES, 20))
    if found is not None:
        expected = [model.search(query, 20) for query in QUERIES]
        for hits, wanted in zip(answers(found), expected, strict=True):
            if [i for i, _ in hits] != [i for i, _ in wanted]:
                faults.append("hits")
    for version, blob in enumerate(BLOBS, start=1):
        head = tried(partial(store.get_head, "c", "h", version))
        if head is not None and (head.blob, head.meta) != (blob, {"classes": ["a", "b"]}):
            faults.append("a head")
    return faults


@pytest.mark.parametrize("what", ["likewise.db", "segments"])
def test_damage_is_an_error_or_does_no_harm_and_fsck_names_it(
    disk: Path, whole: tuple[Path, Model], more: int, what: str
) -> None:
    data, model = whole
    luck = random.Random(what)
    noticed = 0
    for _ in range(TRIALS * more):
        copy = disk / "copy"
        shutil.copytree(data, copy)
        file = copy / what
        damage(file if file.is_file() else next(file.iterdir()), luck)
        store = tried(partial(EmbeddedStore, copy))
        if store is not None:
            faults = wrong(store, model)
            report = tried(store.fsck)
            problems = ["it cannot be checked"] if report is None else report.problems
            assert problems or not faults, faults
            assert "texts" not in faults, "what is damaged is not handed out"
            if what == "segments":
                assert not faults, "what is derived costs nothing"
                tried(partial(store.fsck, repair=True))
                assert store.fsck().problems == []
            noticed += bool(problems)
            tried(store.close)
        else:
            noticed += 1
            assert what != "segments", "what is derived never keeps a store from opening"
        shutil.rmtree(copy)
    assert what == "segments" or noticed > TRIALS / 4


def test_a_damaged_backup_is_refused_or_restores_what_was_in_it(
    disk: Path, whole: tuple[Path, Model], more: int
) -> None:
    data, model = whole
    backup(data, disk / "out")
    sound = (disk / "out").read_bytes()
    luck = random.Random(1)
    refused = 0
    for _ in range(TRIALS * more):
        (disk / "out").write_bytes(sound)
        damage(disk / "out", luck)
        if tried(lambda: verify(disk / "out")) is None:
            refused += 1
            with pytest.raises(LikewiseError):
                restore(disk / "out", disk / "new")
            continue
        restore(disk / "out", disk / "new")
        with EmbeddedStore(disk / "new") as store:
            assert wrong(store, model) == []
            assert {i.id: i.attributes for i in store.list_items("c", page_size=1000)[0]} == {
                i.id: i.attributes for i in model.items.values()
            }
            assert store.fsck().problems == []
        shutil.rmtree(disk / "new")
    assert refused > TRIALS / 4
