"""From pictures to figures: index, search, learn, classify, all through the client's public calls."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from likewise.demo import fewshot, photographs, search
from likewise.demo.digits import digits
from likewise.demo.fewshot import Answers, ShotFigures, UnknownFigures
from likewise.demo.folders import enough
from likewise.demo.indexing import Indexed, describe_again, index, index_pixels
from likewise.demo.latency import Latency, latencies
from likewise.demo.pictures import Picture
from likewise.demo.search import Found, SearchFigures
from likewise.sync import Client

SEED = 0
QUERIES_EACH = 2  # per photograph and change: 210 in all
WARM_UP = 64  # images embedded before anything is timed
MOST_SKIPPED = 10  # files named on the terminal; the figures name all
BUNDLED = "bundled pictures"
MOVED, TIDY = "digits moved about", "digits as they come"

Say = Callable[[str], None]
Naming = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Indexing:
    """Pictures sent to the server and stored, as the client saw it; `failed` names those that could not be."""

    images: int
    seconds: float
    images_per_second: float
    failed: list[str]


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything measured."""

    data: str
    version: str
    backbone: str
    fingerprint: str
    device: str
    seed: int
    seconds: float
    indexing: Indexing
    search: SearchFigures
    few_shot: list[ShotFigures]
    unknown: list[UnknownFigures]
    latency_ms: dict[str, Latency]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures, and what the report shows beside them."""

    figures: Figures
    found: list[Found]
    searched: list[Picture]
    taught: Answers
    learned: list[Picture]
    open_set: Answers | None


@dataclass(frozen=True, slots=True)
class _Stage:
    """What is searched and with which queries (none: its own pictures), and what is learned, by task."""

    searched: Indexed
    queries: list[Picture]
    tasks: dict[str, Indexed]

    @property
    def parts(self) -> list[Indexed]:
        parts = {part.collection.name: part for part in (self.searched, *self.tasks.values())}
        return list(parts.values())


def run(client: Client, backbone: str | None, own: Sequence[Picture] | None, data: str, say: Say) -> Outcome:
    """Run everything against a server; the collections made there are deleted again.

    `own`: pictures of a person's own classes, from `data`; without them the bundled ones serve.
    Raises DemoError where too few pictures can be read, LikewiseError where the server refuses.
    """
    start = time.perf_counter()
    with _scratch(client) as name:
        info = client.info()
        stage = _bundled(client, name, backbone, say) if own is None else _own(client, name, backbone, own, data, say)
        pixels = {
            part.collection.name: index_pixels(client, f"{part.collection.name}-pixels", part) for part in stage.parts
        }

        say("searching")
        against = pixels[stage.searched.collection.name]
        if stage.queries:
            searched, found = search.by_queries(stage.searched, against, stage.queries)
        else:
            searched, found = search.leave_one_out(stage.searched, against, SEED)

        few_shot: list[ShotFigures] = []
        for task, part in stage.tasks.items():
            say(f"learning {task} from a few examples, {fewshot.DRAWS} draws each")
            few_shot += fewshot.accuracies(task, part, pixels[part.collection.name], SEED)
        say("choosing a head by cross-validation, and asking about classes it never saw")
        learned = next(iter(stage.tasks.values()))
        taught = fewshot.answers(learned, "chosen", SEED)
        strangers = None if stage.searched is learned else stage.searched
        opened = [fewshot.unknowns(task, part, strangers, "open", SEED) for task, part in stage.tasks.items()]
        unknown = [made for made in opened if made]

        say("timing single calls")
        timed = latencies(client, stage.searched, stage.queries or taught.asked, taught)
        figures = Figures(
            data=data,
            version=info.version,
            backbone=stage.searched.collection.info.backbone,
            fingerprint=stage.searched.collection.fingerprint,
            device=info.device,
            seed=SEED,
            seconds=round(time.perf_counter() - start, 1),
            indexing=_indexing(stage.parts),
            search=searched,
            few_shot=few_shot,
            unknown=[made for made, _ in unknown],
            latency_ms=timed,
        )
    return Outcome(
        figures, found, stage.searched.pictures, taught, learned.pictures, unknown[0][1] if unknown else None
    )


def _bundled(client: Client, name: Naming, backbone: str | None, say: Say) -> _Stage:
    say("reading the photographs and digits that come with scikit-image and scikit-learn")
    photos = photographs.photographs()
    pieces = photographs.pieces(photos)
    moved, tidy = (fewshot.with_split(digits(moved=moved, seed=SEED), SEED) for moved in (True, False))
    _warm_up(client, backbone, pieces)
    say(f"indexing {len(pieces)} photographs and pieces of them, and {len(moved) + len(tidy)} digits")
    searched = index(client, name("photographs"), pieces, backbone)
    tasks = {
        MOVED: index(client, name("digits-moved"), moved, backbone),
        TIDY: index(client, name("digits-tidy"), tidy, backbone),
    }
    return _Stage(searched, photographs.queries(photos, QUERIES_EACH, SEED), tasks)


def _own(client: Client, name: Naming, backbone: str | None, own: Sequence[Picture], data: str, say: Say) -> _Stage:
    _warm_up(client, backbone, own)
    say(f"indexing {len(own)} pictures")
    indexed = index(client, name("pictures"), fewshot.with_split(own, SEED), backbone)
    for failure in indexed.failed[:MOST_SKIPPED]:
        say(f"skipped {failure}")
    if len(indexed.failed) > MOST_SKIPPED:
        say(f"skipped {len(indexed.failed) - MOST_SKIPPED} more")
    enough(indexed.pictures, data)
    if indexed.failed:  # what is left of a class must again be in both halves
        indexed = describe_again(indexed, fewshot.with_split(indexed.pictures, SEED))
    return _Stage(indexed, [], {data: indexed})


def _warm_up(client: Client, backbone: str | None, pictures: Sequence[Picture]) -> None:
    """Let the server load and compile what it wants to before anything is timed."""
    client.embed([picture.source for picture in pictures[:WARM_UP]], backbone, progress=False)


def _indexing(parts: list[Indexed]) -> Indexing:
    images, seconds = sum(len(part.pictures) for part in parts), sum(part.seconds for part in parts)
    failed = [failure for part in parts for failure in part.failed]
    return Indexing(images, round(seconds, 2), round(images / seconds, 1), failed)


@contextmanager
def _scratch(client: Client) -> Iterator[Naming]:
    """Yield a way to name collections that meets no other's, and delete those that were made with it."""
    prefix = f"likewise-demo-{secrets.token_hex(4)}"
    try:
        yield lambda what: f"{prefix}-{what}"
    finally:
        for info in client.collections():
            if info.name.startswith(prefix):
                client.delete_collection(info.name)
