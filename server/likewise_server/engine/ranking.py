"""Which backbone would tell these classes apart best: on labelled images, or on collections embedded already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likewise_server.backbones.base import BackboneRef, Space
from likewise_server.engine.embedding import Embedder
from likewise_server.engine.gathering import Example
from likewise_server.engine.placing import Candidate, Ranking, placed
from likewise_server.engine.timings import Timings
from likewise_server.engine.workers import Workers
from likewise_server.errors import FailedPrecondition, InvalidArgument, LikewiseError, OutOfRange
from likewise_server.heads.transferability import MOST_ROWS, measurable, transferability
from likewise_server.store.types import Labelled, Store

MOST_CANDIDATES = 32
MOST_BYTES = 2 * 2**30  # of encoded images in one ranking, each of which goes through every network

Float32 = NDArray[np.float32]


class Rankings:
    """Ranks backbones on images that come in parts, and collections as they are."""

    def __init__(self, store: Store, embedder: Embedder, workers: Workers, fits: Workers) -> None:
        self._store = store
        self._embedder = embedder
        self._workers = workers
        self._fits = fits

    async def begin(self, refs: Sequence[BackboneRef]) -> OnImages:
        """Begin to rank backbones, by default all that are served; one that is not has its own `error`.

        Raises InvalidArgument for a backbone named twice, OutOfRange for too many, and the first one's error where
        none can be used.
        """
        wanted = list(refs) or [BackboneRef(name) for name in self._embedder.backbones]
        _check_names([str(ref) for ref in wanted], "backbone")
        candidates: list[Candidate] = []
        for ref in wanted:
            candidate = Candidate(ref)
            try:
                candidate.space = await self._embedder.space(ref)
            except LikewiseError as error:
                candidate.error = error
            candidates.append(candidate)
        return OnImages(candidates, self._embedder, self._fits)

    async def of_collections(self, names: Sequence[str]) -> Ranking:
        """Rank collections on the labelled items that they all have, by id; one that is not there has its own `error`.

        Raises InvalidArgument for a collection named twice and for fewer than two classes with two items, OutOfRange
        for too many collections, FailedPrecondition where they have nothing in common.
        """
        _check_names(names, "collection")
        timings = Timings()
        candidates = [Candidate(None, collection=name) for name in names]
        held: list[Labelled] = []
        for candidate in candidates:
            try:
                with timings.stage("store"):
                    info = await self._workers.run(self._store.get_collection, candidate.collection)
                    held.append(await self._workers.run(self._store.labelled, candidate.collection))
            except LikewiseError as error:
                candidate.error = error
                continue
            candidate.ref = BackboneRef.parse(info.backbone) if info.backbone else None
            candidate.space = Space(info.fingerprint, info.dim, candidate.ref)
        sound = _sound(candidates)
        common = await self._workers.run(_common, held)
        vectors = [data.vectors[rows] for data, rows in zip(held, common.rows, strict=True)]
        ranking = await _ranked(self._fits, candidates, sound, vectors, common.labels, timings)
        if common.differing:
            ranking.reason += f"; {common.differing} items whose labels differ between the collections were left out"
        return ranking


class OnImages:
    """One ranking under way. Images are embedded as they come, and only their vectors are kept."""

    def __init__(self, candidates: list[Candidate], embedder: Embedder, fits: Workers) -> None:
        self._candidates = candidates
        self._sound = _sound(candidates)
        self._embedder = embedder
        self._fits = fits
        self._caller = embedder.new_caller()
        self._timings = Timings()
        self._labels: list[str] = []
        self._bytes = 0
        self._vectors: list[list[Float32]] = [[] for _ in self._sound]
        self._errors: list[dict[int, LikewiseError]] = [{} for _ in self._sound]

    async def add(self, examples: Sequence[Example], *, deadline: float | None = None) -> None:
        """Embed labelled images with each candidate, one after the other, past the cache; `deadline` as for `embed`.

        Raises InvalidArgument for an example without an image or label, OutOfRange once there are too many images or
        bytes.
        """
        images = self._checked(examples)
        start = len(self._labels)
        self._labels += [example.label for example in examples]
        for candidate, vectors, errors in zip(self._sound, self._vectors, self._errors, strict=True):
            began = time.monotonic()
            embedded = await self._embedder.embed(
                images, candidate.ref, deadline=deadline, wait=True, caller=self._caller, fresh=True
            )
            candidate.seconds += time.monotonic() - began
            candidate.images += len(images)
            vectors.append(embedded.vectors)
            errors.update({start + index: error for index, error in embedded.errors.items()})
            self._timings.absorb(embedded.timings)

    def _checked(self, examples: Sequence[Example]) -> list[bytes]:
        images: list[bytes] = []
        for number, example in enumerate(examples, len(self._labels)):
            if example.image is None:
                raise InvalidArgument(f"example {number} has no image, and backbones are ranked on images: send one")
            if not example.label.strip():
                raise InvalidArgument(f"example {number} has no label: give each image one")
            images.append(example.image)
        self._bytes += sum(map(len, images))
        if len(self._labels) + len(images) > MOST_ROWS or self._bytes > MOST_BYTES:
            raise OutOfRange(
                f"a ranking takes at most {MOST_ROWS} images and {MOST_BYTES} bytes, and these are "
                f"{len(self._labels) + len(images)} images so far, of {self._bytes} bytes: a few hundred tell as much"
            )
        return images

    async def result(self) -> Ranking:
        """Measure and rank. Raises InvalidArgument for no readable images and fewer than two classes with two."""
        if not self._labels:
            raise InvalidArgument("no images to rank backbones on: send labelled images, or name collections")
        # One that failed on everything while another did not is at fault itself; else it is the image.
        total = len(self._labels)
        if any(len(errors) < total for errors in self._errors):
            for candidate, errors in zip(self._sound, self._errors, strict=True):
                candidate.error = errors[0] if len(errors) == total else None
        able = [place for place, candidate in enumerate(self._sound) if candidate.error is None]
        errors = {index: error for place in reversed(able) for index, error in self._errors[place].items()}
        read = [index for index in range(total) if index not in errors]
        if not read:
            raise InvalidArgument(f"none of the {total} images can be read; the first: {errors[0].message}")
        labels = [self._labels[index] for index in read]
        rows = np.array(read, dtype=np.intp)[measurable(labels)]
        ranking = await _ranked(
            self._fits,
            self._candidates,
            [self._sound[place] for place in able],
            [np.concatenate(self._vectors[place])[rows] for place in able],
            [self._labels[index] for index in rows],
            self._timings,
        )
        ranking.errors = errors
        return ranking


@dataclass(frozen=True, slots=True)
class _Common:
    """The rows of each collection that hold the same items, with their labels; `differing`: with several, left out."""

    rows: list[NDArray[np.intp]]
    labels: list[str]
    differing: int


def _common(held: Sequence[Labelled]) -> _Common:
    places = [{item_id: row for row, item_id in enumerate(data.ids)} for data in held]
    shared = sorted(set(places[0]).intersection(*places[1:]))
    if not shared:
        raise FailedPrecondition(
            "the collections have no labelled items with the same ids: index the same pictures into each"
        )
    labels = [{data.labels[place[item_id]] for data, place in zip(held, places, strict=True)} for item_id in shared]
    agreed = [(item_id, *label) for item_id, label in zip(shared, labels, strict=True) if len(label) == 1]
    chosen = [agreed[row] for row in measurable([label for _, label in agreed])]
    rows = [np.array([place[item_id] for item_id, _ in chosen], dtype=np.intp) for place in places]
    return _Common(rows, [label for _, label in chosen], len(shared) - len(agreed))


async def _ranked(
    fits: Workers,
    candidates: Sequence[Candidate],
    sound: Sequence[Candidate],
    vectors: Sequence[Float32],
    labels: Sequence[str],
    timings: Timings,
) -> Ranking:
    """Measure the sound candidates by their vectors (n, dim_i), and rank all."""
    with timings.stage("head"):
        for candidate, rows in zip(sound, vectors, strict=True):
            try:
                candidate.found = await fits.run(transferability, rows, labels)
            except LikewiseError as error:  # a vector of zeros, say
                candidate.error = error
    ranking = placed(candidates, labels)
    ranking.timings = timings
    return ranking


def _sound(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that can be measured. Raises the first one's error where there are none."""
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    if len(errors) == len(candidates):
        raise errors[0]
    return [candidate for candidate in candidates if candidate.error is None]


def _check_names(names: Sequence[str], what: str) -> None:
    if len(names) > MOST_CANDIDATES:
        raise OutOfRange(f"{len(names)} {what}s to rank, the limit is {MOST_CANDIDATES}: rank them in several calls")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InvalidArgument(f"{what} {twice!r} is named twice: leave one out")
