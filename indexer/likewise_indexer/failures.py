"""The failure manifest: one JSON line per item that failed, in place only when it is complete."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from likewise.errors import LikewiseError


class Manifest:
    """Writes {id, uri, code, message} lines beside `path`, and renames them to it at the end of the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        number, self._aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        self._file = os.fdopen(number, "w", encoding="utf-8")

    def add(self, item_id: str, uri: str, error: LikewiseError) -> None:
        """Write one line."""
        line = {"id": item_id, "uri": uri, "code": error.code, "message": error.message}
        self._file.write(json.dumps(line) + "\n")
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        Path(self._aside).replace(self.path)
