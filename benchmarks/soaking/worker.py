"""One client of the soak: it writes items of its own, asks for them, and knows what it was told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from likewise import AsyncClient
from likewise.collection import AsyncCollection
from likewise.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from soaking.model import CLOSE, Float32, Model, State, Stored, vector_of

LABELS = ("red", "green", "blue")
IDS = 300  # of each client: collections reach a size, and stay there
PICTURES = 24
PATIENCE_S = 120.0  # longer than a server takes to start again, so that no write is under way unnoticed
KEPT_HEADS = 3


@dataclass(slots=True)
class Known:
    """What all clients know together, and what has happened."""

    images: list[bytes]
    vectors: Float32  # of the images, as the server first gave them
    points: Model = field(default_factory=Model)
    pictures: Model = field(default_factory=Model)
    heads: dict[str, dict[int, bool]] = field(default_factory=dict)  # acknowledged versions; False: deleted
    scratch: dict[str, set[bool]] = field(default_factory=dict)  # collections made and deleted; whether they exist
    done: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Worker:
    """Does one thing after the other while `go` is set; `idle` is set between two of them."""

    def __init__(self, number: int, address: str, known: Known, go: asyncio.Event, seed: int) -> None:
        self._prefix, self._known, self._go = f"w{number}-", known, go
        self._random = random.Random(f"{seed} {number}")
        self.idle = asyncio.Event()
        # Half of them try again what fails, as clients do; what became of the first try is not known then either.
        self._client = AsyncClient(address, timeout=PATIENCE_S, retries=5 * (number % 2))
        self._operations: dict[Callable[[], Awaitable[None]], int] = {
            self._upsert: 6,
            self._search: 6,
            self._delete: 3,
            self._label: 3,
            self._embed: 2,
            self._add_picture: 2,
            self._search_picture: 1,
            self._train: 1,
            self._collection: 1,
        }

    async def run(self) -> None:
        """Go on until cancelled."""
        async with self._client:
            while True:
                self.idle.set()
                await self._go.wait()
                self.idle.clear()
                [operation] = self._random.choices([*self._operations], [*self._operations.values()])
                name = operation.__name__.strip("_")
                try:
                    await operation()
                except (Unavailable, DeadlineExceeded, ResourceExhausted):
                    self._known.unanswered[name] += 1
                    await asyncio.sleep(0.2)
                except Exception as error:  # noqa: BLE001  # whatever it is, it is no answer
                    self._known.wrong.append(f"{name}: {error!r}")
                else:
                    self._known.done[name] += 1
                await asyncio.sleep(self._random.uniform(0, 0.02))

    def _fail(self, words: str) -> None:
        self._known.wrong.append(f"{self._prefix} {words}")

    def _number(self) -> int:
        return self._random.getrandbits(32)

    async def _points(self) -> AsyncCollection:
        return await self._client.collection("points")

    async def _written(self, model: Model, wanted: dict[str, State], write: Callable[[], Awaitable[Any]]) -> Any:
        model.begin(wanted)
        answer = await write()
        model.acknowledge(wanted)
        return answer

    async def _upsert(self) -> None:
        ids = self._random.sample([f"{self._prefix}{n}" for n in range(IDS)], self._random.randint(1, 30))
        states = [Stored(self._number(), self._random.choice((*LABELS, None))) for _ in ids]
        points = await self._points()

        async def write() -> None:
            vectors = np.stack([vector_of(state.number) for state in states])
            outcomes = await points.add_vectors(ids, vectors, labels=[state.label for state in states], progress=False)
            failed = [outcome.error for outcome in outcomes if outcome.error]
            if failed:
                raise failed[0]

        await self._written(self._known.points, dict(zip(ids, states, strict=True)), write)

    def _some(self, *, there: bool, most: int) -> dict[str, State]:
        known = [(i, s) for i, s in self._known.points.known(self._prefix).items() if (s is not None) == there]
        return dict(self._random.sample(known, min(len(known), self._random.randint(1, most))))

    async def _delete(self) -> None:
        chosen = self._some(there=True, most=20)
        if chosen:
            points = await self._points()
            await self._written(self._known.points, dict.fromkeys(chosen), lambda: points.delete([*chosen]))

    async def _label(self) -> None:
        chosen = self._some(there=True, most=20)
        wanted = {i: Stored(s.number, self._random.choice((*LABELS, None))) for i, s in chosen.items() if s}
        if wanted:
            points = await self._points()
            labels = {item_id: state.label for item_id, state in wanted.items()}
            done = await self._written(self._known.points, dict(wanted), lambda: points.label(labels))
            if done.missing:
                self._fail(f"to label: {done.missing} are missing")

    async def _search(self) -> None:
        """Look for an item of our own that is there, and for one that is not any more."""
        points = await self._points()
        for item_id, state in self._some(there=True, most=1).items():
            if state is None:
                continue
            where = f"label = '{state.label}'" if state.label else "label is null"
            for condition in ("", where):
                hits = await points.search(vector=vector_of(state.number), k=5, where=condition)
                scores = [hit.score for hit in hits]
                best = hits[0] if hits else None
                if best is None or best.id != item_id or best.label != state.label or scores != sorted(scores)[::-1]:
                    self._fail(f"search {condition!r}: {item_id} {state} is not the first of {list(hits)}")
        for item_id in self._some(there=False, most=1):
            if any(await points.get([item_id])):
                self._fail(f"get: {item_id} was deleted")

    async def _embed(self) -> None:
        numbers = [self._random.randrange(PICTURES) for _ in range(self._random.randint(1, 4))]
        result = await self._client.embed([self._known.images[n] for n in numbers], progress=False)
        for error in result.errors.values():
            raise error
        if not alike(result.vectors, self._known.vectors[numbers]):
            self._fail(f"embed: pictures {numbers} have other vectors")

    async def _add_picture(self) -> None:
        number = self._random.randrange(PICTURES)
        item_id, state = f"{self._prefix}{self._random.randrange(20)}", Stored(number, self._random.choice(LABELS))
        pictures = await self._client.collection("pictures")

        async def write() -> None:
            [outcome] = await pictures.add(
                [self._known.images[number]], ids=[item_id], labels=[state.label], progress=False
            )
            if outcome.error:
                raise outcome.error

        await self._written(self._known.pictures, {item_id: state}, write)

    async def _search_picture(self) -> None:
        known = [(i, s) for i, s in self._known.pictures.known(self._prefix).items() if s]
        if known:
            _, state = self._random.choice(known)
            hits = await (await self._client.collection("pictures")).search(self._known.images[state.number], k=1)
            if not hits or hits[0].score < 1 - CLOSE:
                self._fail(f"search: picture {state.number} is not found, only {list(hits)}")

    async def _train(self) -> None:
        """Train a head, let it classify, and delete an old version of it."""
        points = await self._points()
        name = f"{self._prefix}head"
        versions = self._known.heads.setdefault(name, {})
        head = await points.train_head(name, "ncm")
        if versions.get(head.version, True) is False or head.version in versions:
            self._fail(f"train: version {head.version} was given before")
        versions[head.version] = True
        [answer] = await points.classify(vectors=[vector_of(self._number())], head=name, version=head.version)
        if answer.best not in head.classes or answer.head_version != head.version:
            self._fail(f"classify: {answer.best!r} by version {answer.head_version} of {head}")
        kept = [version for version, there in versions.items() if there]
        for version in kept[:-KEPT_HEADS]:
            del versions[version]  # if the answer gets lost, nobody knows
            await points.delete_head(name, version)
            versions[version] = False

    async def _collection(self) -> None:
        """Make a collection with an item and a search, or delete it."""
        name = f"{self._prefix}scratch"
        states = self._known.scratch.setdefault(name, {False})
        exists = states == {True}
        states.add(not exists)
        if exists:
            await self._client.delete_collection(name)
        else:
            made = await self._client.create_collection(name, dim=DIM_OF_SCRATCH, exist_ok=True)
            vector = np.ones((1, DIM_OF_SCRATCH), np.float32)
            [outcome] = await made.add_vectors(["one"], vector, progress=False)
            if outcome.error:
                raise outcome.error
            if [hit.id for hit in await made.search(vector=vector[0], k=3)] != ["one"]:
                self._fail(f"search: {name} does not have its one item")
        states.clear()
        states.add(not exists)


DIM_OF_SCRATCH = 4


def alike(found: Float32, expected: Float32) -> bool:
    """Return whether vectors (n, dim) are equal but for what the size of a batch makes of them."""
    if found.shape != expected.shape:
        return False
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return bool(np.all(np.sum(found * expected, axis=1) > (1 - CLOSE) * norms))
