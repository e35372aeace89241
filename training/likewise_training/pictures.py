"""The pictures to train on: from anything that can be indexed, checked once, split the same way each time."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from likewise.progress import bar
from likewise_indexer.sources import open_source
from likewise_server.errors import InvalidArgument, LikewiseError
from likewise_server.images import ImageLimits, Preprocessing, decode, guard, pixels_of

LIMITS = ImageLimits()
FEWEST = 4
CLASSES_TO_SPARE = 6  # as many classes are enough that some can be kept from training altogether


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, in a file or in memory (from an archive)."""

    id: str
    label: str | None
    path: Path | None = None
    data: bytes = b""

    def read(self) -> bytes:
        """Return its encoded bytes. Raises OSError."""
        return self.path.read_bytes() if self.path else self.data


@dataclass(frozen=True)
class Gathered:
    """The pictures of a source that can be read, and (id, reason) of those that cannot."""

    pictures: list[Picture]
    broken: list[tuple[str, str]]

    def hash(self) -> str:
        """Return a hash of ids and labels: a run goes on with the pictures it began with."""
        text = json.dumps([(each.id, each.label) for each in self.pictures])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def gather(source: str, label_from: str = "auto") -> Gathered:
    """List a source's pictures and decode each once, so that no run ends at a broken one.

    Raises InvalidArgument where too few are left, and what `open_source` raises.
    """
    guard(LIMITS)
    opened = open_source(source, label_from=label_from)
    entries = list(opened)
    broken = [(entry.id, entry.error.message) for entry in entries if entry.error]
    found = [Picture(e.id, e.label, e.path, e.data or b"") for e in entries if not e.error]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, bar("checking", len(found)) as advance:
        kept = []
        for picture, fault in zip(found, pool.map(_fault, found), strict=True):
            advance(1)
            if fault:
                broken.append((picture.id, fault))
            else:
                kept.append(picture)
    if len(kept) < FEWEST:
        raise InvalidArgument(
            f"{opened.name} has {len(kept)} readable pictures ({len(broken)} broken): training needs {FEWEST} at the "
            "very least, and some thousand to be worth it"
        )
    return Gathered(kept, broken)


def _fault(picture: Picture) -> str:
    try:
        decode(picture.read(), LIMITS)
    except (LikewiseError, OSError) as error:
        return str(error)
    return ""


def classes_of(pictures: Sequence[Picture]) -> list[str]:
    """Return the labels there are, sorted."""
    return sorted({each.label for each in pictures if each.label is not None})


def numbered(pictures: Sequence[Picture], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return (n,) the place of each picture's label in `classes`, -1 for none."""
    places = {label: place for place, label in enumerate(classes)}
    return np.array([places.get(each.label or "", -1) if each.label is not None else -1 for each in pictures])


def hold_out(pictures: Sequence[Picture], how: str, share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """Split into what is trained on and what is held out to score: whole classes, or some items of each class.

    `how`: classes, items, or auto, which takes classes where there are CLASSES_TO_SPARE. Raises InvalidArgument
    where classes are asked for and there are too few.
    """
    classes, rng = classes_of(pictures), np.random.default_rng((seed, 1))
    if how == "classes" and len(classes) < CLASSES_TO_SPARE:
        raise InvalidArgument(
            f"hold_out=classes needs {CLASSES_TO_SPARE} classes, and there are {len(classes)}: use hold_out=items"
        )
    if how != "items" and len(classes) >= CLASSES_TO_SPARE:
        count = max(2, round(share * len(classes)))
        spared = {classes[i] for i in rng.permutation(len(classes))[:count]}
        held = [each.label in spared for each in pictures]
    else:
        order = rng.permutation(len(pictures)).tolist()
        sizes = Counter(each.label for each in pictures)
        left = {label: min(size - 1, max(2, round(share * size))) for label, size in sizes.items()}
        held = [False] * len(pictures)
        for place in order:
            label = pictures[place].label
            if left[label] > 0:
                left[label] -= 1
                held[place] = True
    kept = [each for each, out in zip(pictures, held, strict=True) if not out]
    return kept, [each for each, out in zip(pictures, held, strict=True) if out]


def pixels(pictures: Sequence[Picture], how: Preprocessing, batch: int = 32) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures as they will be served, uint8 (<= batch, crop, crop, 3)."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(pictures), batch):
            part = pictures[start : start + batch]
            yield np.stack(list(pool.map(lambda each: pixels_of(each.read(), how, LIMITS), part)))
