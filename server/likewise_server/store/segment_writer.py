"""Writes a segment's file so that it survives a power cut, complete or not at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from likewise_server.store import failpoints, folders
from likewise_server.store.segments import Section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ALIGNED = 64  # bytes


class SegmentWriter:
    """A file under a temporary name. Sections follow one another; `finish` gives it its name."""

    def __init__(self, folder: Path, collection_id: int) -> None:
        self._folder = folder
        self.name = f"{collection_id}-{uuid.uuid4().hex}.segment"
        self._temporary = folder / f"{self.name}.tmp"
        self._file = os.fdopen(os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b")
        self.sections: dict[str, Section] = {}
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not finished."""
        self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def section(self, name: str) -> Iterator[Sink]:
        """Write one section through what is lent."""
        self._file.write(b"\0" * (-self._file.tell() % ALIGNED))
        start = self._file.tell()
        sink = Sink(self._file)
        yield sink
        self._file.flush()
        self.sections[name] = Section(start=start, bytes=self._file.tell() - start, sha256=sink.sha256.hexdigest())

    def mapped(self, name: str, kind: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
        """Return a section written before, read from the file as it is needed."""
        if not self.sections[name].bytes:
            return np.empty(shape, kind)
        return np.asarray(np.memmap(self._temporary, kind, "r", self.sections[name].start, shape))

    def finish(self) -> None:
        """Have everything on disk, under the final name. Raises OSError."""
        failpoints.hit("segment.after_write")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.bytes = self._file.tell()
        failpoints.hit("segment.after_fsync")
        self._temporary.rename(self._folder / self.name)
        failpoints.hit("segment.after_rename")
        folders.sync(self._folder)
        failpoints.hit("segment.after_folder_fsync")


class Sink:
    """A file that hashes what passes through it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes, or an array's."""
        self.sha256.update(data)
        written: int = self._file.write(data)
        return written
