"""What a source is, and what it yields: entries, each an image somewhere with an id that stays the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from likewise.errors import LikewiseError

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".jp2", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
    )
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source: a file at `path`, or the bytes in `data`, or what is wrong with it.

    `mtime_ns` (nanoseconds since 1970) is only for `data`; that of a file is asked when it is needed.
    """

    id: str
    uri: str
    path: Path | None = None
    data: bytes | None = None
    mtime_ns: int = 0
    label: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    error: LikewiseError | None = None

    def stat(self) -> tuple[int, int]:
        """Return its size in bytes and mtime in nanoseconds. Raises OSError."""
        if self.path is None:
            return len(self.data or b""), self.mtime_ns
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def described(self) -> str:
        """Return a short hash of what is stored beside the vector: label, attributes, uri."""
        text = json.dumps([self.label, self.attributes, self.uri], sort_keys=True, default=str)
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


class Source(Protocol):
    """Where images come from. Iterating starts anew each time and never holds the whole list."""

    @property
    def name(self) -> str:
        """What it is, absolutely: the journal of a source is found by it."""

    @property
    def labels(self) -> str:
        """Where labels come from, in words; "" for nowhere."""

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries in an order that does not change. Raises LikewiseError for a broken source."""

    def count(self) -> int | None:
        """Return how many entries there are, None where finding out would mean reading all of it."""


def is_image(name: str) -> bool:
    """Return whether a file's name ends like that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  # called for every file


def readable(text: str) -> str:
    r"""Return a file name as valid Unicode: bytes that are none become \xNN, always the same way."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def folder_label(item_id: str, root: str = "") -> str | None:
    """Return the name of the folder that an id is in, `root` where it is in none."""
    return PurePosixPath(item_id).parent.name or root or None
