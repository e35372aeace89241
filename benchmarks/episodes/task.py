"""One episode as vectors: what a system learns from, what it is asked, and what it may know of the collection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from episodes.manifest import Drawer, Episode, Part
from episodes.pictures import PictureSet, Vectors

Classes = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Task:
    """Unit vectors: examples Z (n, d) of classes y (n,), queries Q (m, d) of classes truth (m,), strangers U (u, d).

    mean (d,) is that of the set without any query: a collection that holds everything but what is asked. narrow
    (d,) is that of the known classes' pictures alone.
    """

    number: int
    Z: Vectors
    y: Classes
    Q: Vectors
    truth: Classes
    U: Vectors
    mean: Vectors
    narrow: Vectors
    n_classes: int

    @property
    def shots(self) -> int:
        """Examples of a class."""
        return len(self.y) // self.n_classes


def tasks(pictures: PictureSet, vectors: Vectors, part: Part, shots: int, count: int) -> Iterator[Task]:
    """Draw the first `count` episodes of a part; none where the set has too few pictures of a class."""
    drawer, names = Drawer(pictures), np.array([picture.partition("/")[0] for picture in pictures.ids])
    for number in range(count):
        episode = drawer.episode(part, number, shots)
        if episode is None:
            return
        yield _task(episode, number, vectors, names)


def _task(episode: Episode, number: int, vectors: Vectors, names: NDArray[np.str_]) -> Task:
    rest = np.delete(np.arange(len(vectors)), episode.asked)
    known = rest[np.isin(names[rest], names[episode.supports])]
    return Task(
        number,
        vectors[episode.supports],
        episode.support_classes,
        vectors[episode.queries],
        episode.query_classes,
        vectors[episode.strangers],
        vectors[rest].mean(axis=0),
        vectors[known].mean(axis=0),
        episode.n_classes,
    )


def in_span(*parts: Vectors) -> list[Vectors]:
    """Return the rows of all parts in an orthonormal basis of their span: fewer numbers, the same inner products."""
    together = np.concatenate(parts)
    if len(together) >= together.shape[1]:
        return list(parts)
    turned = np.linalg.qr(together.T)[1].T
    return np.split(turned, np.cumsum([len(part) for part in parts])[:-1])


def of_examples(task: Task) -> tuple[Vectors, Vectors]:
    """Return examples and queries in a basis of the examples' span, where any linear head has the same answers."""
    n, d = task.Z.shape
    if n >= d:
        return task.Z, task.Q
    basis, turned = np.linalg.qr(task.Z.T)
    return np.ascontiguousarray(turned.T), task.Q @ basis
