"""Pictures into a collection, timed; and the same pictures as raw pixels, which is the baseline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from likewise.demo.pictures import Picture, pixel_vectors
from likewise.results import Float32
from likewise.sync import Client, Collection


@dataclass(frozen=True, slots=True)
class Indexed:
    """A collection, the pictures in it and their vectors (n, dim), row by row; `failed`: id and reason."""

    collection: Collection
    pictures: list[Picture]
    vectors: Float32
    seconds: float
    failed: list[str]

    @property
    def labels(self) -> list[str]:
        """The class of each picture."""
        return [picture.label for picture in self.pictures]


def index(client: Client, name: str, pictures: Sequence[Picture], backbone: str | None) -> Indexed:
    """Add pictures to a new collection; those that cannot be read are left out and named in `failed`."""
    collection = client.create_collection(name, backbone)
    start = time.perf_counter()
    outcomes = collection.add(
        [picture.source for picture in pictures],
        ids=[picture.id for picture in pictures],
        labels=[picture.label for picture in pictures],
        attributes=[picture.attributes for picture in pictures],
    )
    seconds = time.perf_counter() - start
    sound = [picture for picture, outcome in zip(pictures, outcomes, strict=True) if not outcome.error]
    failed = [f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.error]
    stored = collection.get([picture.id for picture in sound], vectors=True)
    rows = [item.vector for item in stored if item is not None and item.vector is not None]
    vectors = np.stack(rows) if rows else np.zeros((0, collection.info.dim), np.float32)
    return Indexed(collection, sound, vectors, seconds, failed)


def describe_again(indexed: Indexed, pictures: list[Picture]) -> Indexed:
    """Give the pictures of a collection other attributes: the vectors stay, so nothing is embedded again."""
    _add_vectors(indexed.collection, pictures, indexed.vectors)
    return replace(indexed, pictures=pictures)


def index_pixels(client: Client, name: str, indexed: Indexed) -> Indexed:
    """Add the same pictures as 16x16 thumbnails, as vectors from elsewhere: all else stays the same."""
    vectors = pixel_vectors(indexed.pictures)
    collection = client.create_collection(name, dim=vectors.shape[1])
    _add_vectors(collection, indexed.pictures, vectors)
    return replace(indexed, collection=collection, vectors=vectors)


def _add_vectors(collection: Collection, pictures: list[Picture], vectors: Float32) -> None:
    added = collection.add_vectors(
        [picture.id for picture in pictures],
        vectors,
        labels=[picture.label for picture in pictures],
        attributes=[picture.attributes for picture in pictures],
        progress=False,
    )
    added.raise_for_errors()
