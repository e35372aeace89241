"""Stores keep collections. `open_store` gives the engine asked for; all of them keep the `Store` protocol."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from likewise_server.errors import InvalidArgument
from likewise_server.store.types import (
    Attributes,
    CollectionInfo,
    CollectionSpace,
    FsckReport,
    HeadRow,
    Hit,
    Item,
    Labelled,
    Metric,
    NewItem,
    NewLabel,
    Outcome,
    SearchResult,
    Store,
)

__all__ = [
    "ENGINES",
    "Attributes",
    "CollectionInfo",
    "CollectionSpace",
    "FsckReport",
    "HeadRow",
    "Hit",
    "Item",
    "Labelled",
    "Metric",
    "NewItem",
    "NewLabel",
    "Outcome",
    "SearchResult",
    "Store",
    "open_store",
]

Opener: TypeAlias = Callable[[str | os.PathLike[str], int], Store]


def _embedded() -> Opener:
    from likewise_server.store import gpu  # noqa: PLC0415  # loads only the engine in use
    from likewise_server.store.embedded import EmbeddedStore  # noqa: PLC0415

    return lambda path, gpu_bytes: EmbeddedStore(path, gpu=gpu.detect(gpu_bytes))


ENGINES: dict[str, Callable[[], Opener]] = {"embedded": _embedded}


def open_store(path: str | os.PathLike[str], engine: str = "embedded", *, gpu_bytes: int = 0) -> Store:
    """Open a store; searches may take `gpu_bytes` of a GPU's memory, if there is one.

    Raises InvalidArgument for an unknown engine and FailedPrecondition where the data is in use or of a
    newer format.
    """
    if engine not in ENGINES:
        raise InvalidArgument(f"There is no store engine {engine!r}; choose one of {', '.join(ENGINES)}.")
    return ENGINES[engine]()(path, gpu_bytes)
