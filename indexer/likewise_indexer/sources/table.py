"""A list of images: CSV, TSV or Parquet, with a path per row and perhaps an id, a label and attributes."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likewise.errors import InvalidArgument
from likewise_indexer.sources.base import Entry, readable

PARQUET_EXTRA = "reading Parquet needs pyarrow: pip install 'likewise[indexer]'"
EXACT = 2**53  # attributes are JSON numbers, which hold integers exactly up to here
BATCH_ROWS = 1024
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)\.\d+")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what. None: "id" and "label" where there are such; `attributes`: all the others."""

    path: str = "path"
    id: str | None = None
    label: str | None = None
    attributes: Sequence[str] | None = None


class Table:
    """The rows of a list. Paths are relative to the list's own folder; ids default to the path as written."""

    def __init__(self, file: Path, *, columns: Columns | None = None, label_from: str = "auto") -> None:
        self.file = Path(os.path.abspath(file))  # noqa: PTH100  # Path.absolute() keeps ".."
        self.name = str(self.file)
        self._parquet = file.suffix.lower() in (".parquet", ".pq")
        columns = columns or Columns()
        names = self._column_names()
        self._path = columns.path
        self._id = columns.id or ("id" if "id" in names else None)
        label = columns.label or ("label" if "label" in names else None)
        self._label = label if label_from in ("auto", "csv") else None
        self._by_folder = label_from == "dir"
        if label_from == "csv" and label is None:
            raise InvalidArgument(f"{file} has no column 'label' but {_listed(names)}: name one with --label-column")
        used = {self._path, self._id, label}
        self._attributes = [n for n in names if n not in used] if columns.attributes is None else columns.attributes
        for column in (self._path, self._id, self._label, *self._attributes):
            if column is not None and column not in names:
                raise InvalidArgument(f"{file} has no column {column!r} but {_listed(names)}")
        self.labels = "folder names" if self._by_folder else f"column {self._label!r}" if self._label else ""

    def __iter__(self) -> Iterator[Entry]:
        """Yield an entry per row. Raises InvalidArgument for a file that is not what its name says."""
        for number, row in enumerate(self._rows(), start=1):
            yield self._entry(number, row)

    def count(self) -> int:
        """Return the number of rows; reads a CSV through."""
        if self._parquet:
            return int(_parquet_file(self.file).metadata.num_rows)
        return sum(1 for _ in self._rows())

    def _entry(self, number: int, row: dict[str, Any]) -> Entry:
        text = str(row.get(self._path) or "")
        item_id = str(_plain(row.get(self._id)) or "") if self._id else text
        if not text or not item_id or "\0" in text:
            error = InvalidArgument(f"row {number} of {self.file.name} has no {'id' if text else 'path'}")
            return Entry(id=readable(item_id) or f"row {number}", uri=f"{self.file}#{number}", error=error)
        path = self.file.parent / text
        label = path.parent.name if self._by_folder else _plain(row.get(self._label)) if self._label else None
        values = {name: _plain(row.get(name)) for name in self._attributes}
        return Entry(
            id=readable(item_id),
            uri=readable(str(path)),
            path=path,
            label=None if label is None or label == "" else str(label),
            attributes={
                name: value if self._parquet else _number(value)
                for name, value in values.items()
                if value is not None and value != ""
            },
        )

    def _column_names(self) -> list[str]:
        if self._parquet:
            return [str(name) for name in _parquet_file(self.file).schema_arrow.names]
        with _csv_open(self.file) as reader:
            return list(reader.fieldnames or ())

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self._parquet:
            wanted = sorted({self._path, *filter(None, (self._id, self._label)), *self._attributes})
            for batch in _parquet_file(self.file).iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
            return
        with _csv_open(self.file) as reader:
            yield from reader


class _csv_open:  # noqa: N801  # used as a function
    """Open a CSV or TSV (UTF-8), turning what goes wrong inside the block into InvalidArgument."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> csv.DictReader[str]:
        try:
            self._handle = self._file.open(newline="", encoding="utf-8-sig")
            self._reader = csv.DictReader(self._handle, delimiter="\t" if self._file.suffix.lower() == ".tsv" else ",")
        except OSError as error:
            raise InvalidArgument(f"cannot read {self._file}: {error.strerror or error}") from error
        return self._reader

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._handle.close()
        if isinstance(error, (csv.Error, UnicodeDecodeError, OSError)):
            line = self._reader.line_num
            raise InvalidArgument(f"{self._file} is no UTF-8 list near line {line}: {error}") from error


def _parquet_file(file: Path) -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra, needed for this format only
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise InvalidArgument(PARQUET_EXTRA) from error
    try:
        return parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidArgument(f"cannot read {file} as Parquet: {error}") from error


def _plain(value: Any) -> Any:
    """Return a JSON value: dates and the like as text, no value for NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return str(value)


def _number(text: Any) -> Any:
    """Return the number that a CSV's text is written as; "007" and "1e5" stay text."""
    if not isinstance(text, str):
        return text
    if text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 16:  # noqa: PLR2004  # digits of 2**53
        value = int(text)
        return value if str(value) == text and abs(value) <= EXACT else text
    return float(text) if _DECIMAL.fullmatch(text) else text


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none at all"
