"""Items into files: Parquet, or a .npy matrix with the rest beside it as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from likewise.errors import InvalidArgument
from likewise.results import CollectionInfo, Item

Write = Callable[[Sequence[Item]], None]


@contextmanager
def writer_for(path: Path, info: CollectionInfo) -> Iterator[Write]:
    """Yield a function that appends items to `path`, whose ending chooses the format.

    The file appears under its name only when it is complete. Raises InvalidArgument for another ending.
    """
    writers = {".parquet": _parquet, ".npy": _npy}
    if path.suffix not in writers:
        raise InvalidArgument(f"{path.name}: name the file .parquet or .npy")
    if not path.parent.is_dir():
        raise InvalidArgument(f"there is no directory {path.parent}: make it, or write elsewhere")
    partial = path.with_name(path.name + ".partial")
    try:
        with writers[path.suffix](partial, info, path) as write:
            yield write
        _take_name(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _parquet(partial: Path, info: CollectionInfo, _path: Path) -> Iterator[Write]:
    """Columns id, label, attributes (JSON), uri, content_hash, vector (fixed-size list of float32)."""
    try:
        import pyarrow as pa  # noqa: PLC0415  # the light client does without
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise InvalidArgument("Parquet needs pyarrow: pip install 'likewise[indexer]', or export to .npy") from error
    columns = [(name, pa.string()) for name in ("id", "label", "attributes", "uri", "content_hash")]
    facts = {
        "likewise.fingerprint": info.fingerprint,
        "likewise.backbone": info.backbone,
        "likewise.metric": info.metric,
    }
    schema = pa.schema([*columns, ("vector", pa.list_(pa.float32(), info.dim))], metadata=facts)

    def write(items: Sequence[Item]) -> None:
        flat = np.concatenate([_vector(item) for item in items]) if items else np.zeros(0, np.float32)
        table: list[Any] = [
            [item.id for item in items],
            [item.label for item in items],
            [json.dumps(item.attributes, ensure_ascii=False) for item in items],
            [item.uri for item in items],
            [item.content_hash for item in items],
        ]
        arrays = [pa.array(values, pa.string()) for values in table]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), info.dim)
        file.write_table(pa.Table.from_arrays([*arrays, vectors], schema=schema))

    with pq.ParquetWriter(partial, schema) as file:
        yield write


@contextmanager
def _npy(partial: Path, info: CollectionInfo, path: Path) -> Iterator[Write]:
    """Write rows as they come behind a header that is rewritten with their number at the end."""
    beside = path.with_suffix(".jsonl")
    lines = beside.with_name(beside.name + ".partial")
    rows = 0
    try:
        with partial.open("wb") as matrix, lines.open("w", encoding="utf-8") as rest:

            def header() -> None:
                matrix.seek(0)
                shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, info.dim)}
                np.lib.format.write_array_header_1_0(matrix, shape)

            def write(items: Sequence[Item]) -> None:
                nonlocal rows
                for item in items:
                    matrix.write(_vector(item).astype("<f4").tobytes())
                    facts = {"id": item.id, "label": item.label, "attributes": item.attributes}
                    facts |= {"uri": item.uri, "content_hash": item.content_hash}
                    rest.write(json.dumps(facts, ensure_ascii=False) + "\n")
                rows += len(items)

            header()  # NumPy pads headers so that a longer row count still fits
            start = matrix.tell()
            yield write
            header()
            if matrix.tell() != start:
                raise AssertionError("the .npy header changed its size")
        _take_name(lines, beside)
    finally:
        lines.unlink(missing_ok=True)


def _take_name(partial: Path, path: Path) -> None:
    """Rename what is complete; it is on the disk before its name says so."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _vector(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
    if item.vector is None:
        raise InvalidArgument(f"item {item.id!r} came without its vector")
    return item.vector
