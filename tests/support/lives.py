"""A life of a store, step by step, and a model that knows what must be left of it, whatever stopped it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.store_model import Model, check_search
from likewise_server.errors import LikewiseError
from likewise_server.store import NewItem, NewLabel, Store
from likewise_server.store.backup import backup, restore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

DIM = 4
CYCLE = [
    *(("upsert", "c"), ("checkpoint", "c"), ("relabel", "c"), ("delete", "c"), ("save_head", "c"), ("upsert", "c")),
    *(("search", "c"), ("checkpoint", "c"), ("create", "d"), ("upsert", "d"), ("reopen", ""), ("save_head", "d")),
    *(("backup", "c"), ("alter", "c"), ("upsert", "c"), ("delete_head", "c"), ("drop", "d"), ("damage", "")),
    *(("search", "c"), ("restore", "r"), ("upsert", "r"), ("checkpoint", ""), ("drop", "r"), ("upsert", "c")),
]
"""Every kind of write: to `c`, which grows, to `d`, which comes and goes, and to `r`, restored from a backup."""
OUTSIDE = {"reopen", "damage", "restore"}
"""Steps that close the store and open it again."""
NO_WRITE = {"search", "checkpoint", "reopen", "damage"}


@dataclass(frozen=True)
class Step:
    """Something done to a store."""

    op: str
    collection: str = ""
    args: tuple[Any, ...] = ()


def script(seed: int, steps: int) -> list[Step]:
    """Return a life: the cycle again and again, with values by seed."""
    rng = np.random.default_rng(seed)
    life = [Step("create", "c")]
    for number in range(steps - 1):
        op, name = CYCLE[number % len(CYCLE)]
        ids = [f"i{n}" for n in rng.integers(0, 60, size=12)]
        args: tuple[Any, ...] = ()
        if op == "upsert":
            args = tuple(_items(rng, [*dict.fromkeys(["0", *ids]), f"new{number}"], number))
        elif op == "relabel":
            args = tuple(NewLabel(i, f"r{number}") for i in dict.fromkeys(ids))
        elif op == "delete":
            args = tuple(ids[:4])
        elif op == "save_head":
            args = (rng.bytes(2000),)
        elif op == "alter":
            args = ("n",) if number % (2 * len(CYCLE)) < len(CYCLE) else ()
        life.append(Step(op, name, args))
    return life


def _items(rng: np.random.Generator, ids: Sequence[str], number: int) -> list[NewItem]:
    pad = "x" * int(rng.integers(0, 3000))
    vectors = rng.normal(size=(len(ids), DIM)).astype(np.float32)
    labels = [f"l{n}" for n in rng.integers(0, 3, size=len(ids))]
    attributes = {"n": number, "pad": pad}
    return [NewItem(i, v, label, attributes) for i, v, label in zip(ids, vectors, labels, strict=True)]


class Hand:
    """Does steps to a store; each op is a method."""

    def __init__(self, store: Store, data: Path) -> None:
        self._store = store
        self._backup = data.with_suffix(".backup")
        self._data = data

    def do(self, step: Step) -> None:
        """Do a step; raises LikewiseError."""
        getattr(self, step.op)(step.collection, *step.args)

    def create(self, name: str) -> None:
        self._store.create_collection(name, dim=DIM, metric="l2", fingerprint="f")

    def upsert(self, name: str, *items: NewItem) -> None:
        for outcome in self._store.upsert(name, items, fingerprint="f"):
            if isinstance(outcome, LikewiseError):
                raise outcome

    def relabel(self, name: str, *labels: NewLabel) -> None:
        self._store.relabel(name, labels)

    def delete(self, name: str, *ids: str) -> None:
        self._store.delete(name, ids)

    def save_head(self, name: str, blob: bytes) -> None:
        self._store.save_head(name, "h", "knn", {}, blob)

    def delete_head(self, name: str) -> None:
        self._store.delete_head(name, "h", 1)

    def alter(self, name: str, *indexed: str) -> None:
        self._store.alter_collection(name, indexed=indexed)

    def drop(self, name: str) -> None:
        self._store.delete_collection(name)

    def checkpoint(self, name: str) -> None:
        self._store.checkpoint(name)

    def search(self, name: str) -> None:
        self._store.search(name, np.ones((1, DIM), np.float32), 3)

    def backup(self, name: str) -> None:
        """Back up while the store is open."""
        self._backup.unlink(missing_ok=True)
        try:
            backup(self._data, self._backup, name)
        except LikewiseError:
            self._backup.unlink(missing_ok=True)
            raise

    def reopen(self, _: str) -> None:
        """Do nothing: the store was closed, and is opened again."""

    def damage(self, _: str) -> None:
        """Cut off half of every segment."""
        for segment in (self._data / "segments").iterdir():
            with segment.open("r+b") as file:
                file.truncate(segment.stat().st_size // 2)

    def restore(self, name: str) -> None:
        restore(self._backup, self._data, "c", name=name)


@dataclass
class _Collection:
    items: Model = field(default_factory=lambda: Model("l2"))
    heads: dict[int, bytes] = field(default_factory=dict)
    last_head: int = 0


@dataclass
class World:
    """What a store must have. Its methods are those of Hand."""

    collections: dict[str, _Collection] = field(default_factory=dict)
    saved: _Collection | None = None

    def do(self, step: Step) -> None:
        """Do a step."""
        if step.op not in {*NO_WRITE, "alter"}:
            getattr(self, step.op)(step.collection, *step.args)

    def create(self, name: str) -> None:
        self.collections[name] = _Collection()

    def upsert(self, name: str, *items: NewItem) -> None:
        for item in items:
            self.collections[name].items.upsert(item)

    def relabel(self, name: str, *labels: NewLabel) -> None:
        for label in labels:
            if label.id in self.collections[name].items.items:
                self.collections[name].items.relabel(label.id, label.label)

    def delete(self, name: str, *ids: str) -> None:
        for item_id in ids:
            self.collections[name].items.items.pop(item_id, None)

    def save_head(self, name: str, blob: bytes) -> None:
        self.collections[name].last_head += 1
        self.collections[name].heads[self.collections[name].last_head] = blob

    def delete_head(self, name: str) -> None:
        self.collections[name].heads.pop(1, None)

    def drop(self, name: str) -> None:
        del self.collections[name]

    def backup(self, name: str) -> None:
        self.saved = deepcopy(self.collections[name])

    def restore(self, name: str) -> None:
        assert self.saved is not None
        self.collections[name] = deepcopy(self.saved)

    def facts(self) -> dict[str, Any]:
        """Return all there is, for comparison."""
        return {
            name: (
                {i.id: (i.vector.tobytes(), i.label, i.attributes) for i in there.items.items.values()},
                there.heads,
            )
            for name, there in self.collections.items()
        }


def worlds(life: Sequence[Step]) -> list[World]:
    """Return what there is before the first step and after each."""
    all_of_them = [World()]
    for step in life:
        all_of_them += _all(all_of_them[-1:], step) or [World()]
    return all_of_them


def after(life: Sequence[Step], acks: str) -> list[World]:
    """Return what there may be after a life of which some steps failed.

    What failed with "?" is undone at once, and may be there after the store is opened again, unless a write since then
    took its place.
    """
    now: list[World] = [World()]
    pending: Step | None = None
    for step, ack in zip(life, acks, strict=True):
        if step.op in OUTSIDE and pending is not None:
            now, pending = [*now, *_all(now, pending)], None
        if step.op in NO_WRITE:
            continue
        if ack == "+":
            now, pending = _all(now, step), None
        elif step.op == "backup":
            for each in now:
                each.saved = None
        elif ack == "?" and step.op in OUTSIDE:
            now = [*now, *_all(now, step)]
        elif ack == "?":
            pending = step
    return now if pending is None else [*now, *_all(now, pending)]


def _all(now: Iterable[World], step: Step) -> list[World]:
    """Return the worlds after a step, of those in which it can be taken."""
    new = {"create": True, "restore": True, **dict.fromkeys(NO_WRITE, True)}
    able = [w for w in now if (w.saved is not None or step.op != "restore")]
    made = deepcopy([w for w in able if new.get(step.op) or step.collection in w.collections])
    for each in made:
        each.do(step)
    return made


def facts(store: Store) -> dict[str, Any]:
    """Return what a store has, as `World.facts`."""
    found = {}
    for info in store.list_collections(100)[0]:
        items, rest = store.list_items(info.name, page_size=1000, vectors=True)
        assert not rest
        assert len(items) == info.count == store.count(info.name)
        heads, _ = store.list_heads(info.name, blobs=True)
        found[info.name] = (
            {i.id: (i.vector.tobytes() if i.vector is not None else b"", i.label, i.attributes) for i in items},
            {head.version: head.blob for head in heads},
        )
    return found


def check(store: Store, possible: Iterable[World]) -> World:
    """Assert that a store has one of the worlds, whole, and finds what brute force finds; return which.

    Also that fsck finds nothing, or only what was damaged on purpose, and sets that right.
    """
    found = facts(store)
    world = next((each for each in possible if each.facts() == found), None)
    assert world is not None, "something acknowledged is lost, or something is there that should not be"
    queries = np.random.default_rng(9).normal(size=(3, DIM)).astype(np.float32)
    for name, there in world.collections.items():
        check_search(there.items, store.search(name, queries, 200), queries, 200)
    damaged = store.fsck(repair=True).problems
    # A bad segment, or what is missing while one that was set aside is not built anew yet: derived, both.
    derived = ("its contents are not what was written", "the segments lack rows of the database")
    assert all(any(each in problem for each in derived) for problem in damaged), damaged
    assert store.fsck().problems == []
    return world
