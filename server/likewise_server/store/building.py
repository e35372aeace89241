"""Builds a segment: the rows of a collection into a file, and for many of them the codes that find them quickly.

Large ones are built by `python -m likewise_server.store.building` in a process of its own, at the lowest
priority: the server goes on answering, its memory stays as it is, and if FAISS crashes, exact search goes on.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import faiss as untyped
import numpy as np
from pydantic import BaseModel

from likewise_server.child import end_with_parent
from likewise_server.store import approximate, catalog, failpoints, items, recall, schema, vectors
from likewise_server.store.approximate import Approximation
from likewise_server.store.parts import BLOCK, Part, squares_of
from likewise_server.store.segment_writer import SegmentWriter
from likewise_server.store.segments import FLAT, Meta, SegmentFiles, Written

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from likewise_server.store.catalog import Collection
    from likewise_server.store.types import Float32, Int64

logger = logging.getLogger(__name__)

faiss: Any = untyped  # its stubs know half of it

NICENESS = 19
PER_LIST = 40  # rows of the training sample for each list
ROUNDS = 10  # of k-means
QUESTIONS = 400
SEED = 20_240_229

Say: TypeAlias = "Callable[[str, float], None]"


class Task(BaseModel):
    """What to build: all items with a vid past `after_vid`. `factory` may be "auto"."""

    data: Path
    collection_id: int
    after_vid: int
    factory: str
    target: float
    threads: int
    queries: list[list[float]] = []  # real ones, searchable, on which recall is to be reached


class Said(BaseModel):
    """A line that the process prints: how far it is, or at the end what it wrote."""

    step: str = ""
    progress: float = 0.0
    written: Written | None = None


def main() -> None:
    """Read a task from standard input, build, and say how it goes."""
    os.nice(NICENESS)
    task = Task.model_validate_json(sys.stdin.readline())
    end_with_parent()
    connection = schema.connect(task.data / "likewise.db")
    connection.execute("PRAGMA query_only = ON")
    connection.execute("BEGIN")

    def say(said: Said) -> None:
        print(said.model_dump_json(), flush=True)  # noqa: T201  # the parent reads it

    written = build(connection, task, lambda step, progress: say(Said(step=step, progress=progress)))
    say(Said(written=written))


def build(db: sqlite3.Connection, task: Task, say: Say) -> Written:
    """Write a segment of what `db`, in a transaction, sees. Raises NotFound, OSError, and RuntimeError of FAISS."""
    collection = catalog.find_id(db, task.collection_id)
    files = SegmentFiles(task.data)
    with SegmentWriter(files.folder, task.collection_id) as writer:
        vids, squares, last_vid = _write_rows(db, collection, task.after_vid, writer, say)
        kind = np.dtype(np.float16 if collection.storage == "fp16" else np.float32)
        part = Part.of(vids, writer.mapped("rows", kind, (len(vids), collection.dim)), squares)
        factory = automatic(len(vids)) if task.factory == "auto" else task.factory
        points: list[approximate.Point] = []
        if factory != FLAT:
            points = _write_codes(part, factory, collection, task, writer, say)
        failpoints.hit("segment.after_build")
        writer.finish()
        meta = Meta(
            after_vid=task.after_vid,
            last_vid=last_vid,
            storage=collection.storage,
            sections=writer.sections,
            points=points,
        )
        return Written(
            file=writer.name,
            bytes=writer.bytes,
            factory=factory if points else FLAT,
            row_count=len(vids),
            up_to_seq=collection.seq,
            meta=meta,
        )


def automatic(rows: int) -> str:
    """Return the factory for so many rows: about four times as many lists as the root of the rows."""
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(max(rows, 64))))},RaBitQ"


def _write_rows(
    db: sqlite3.Connection, collection: Collection, after_vid: int, writer: SegmentWriter, say: Say
) -> tuple[Int64, Float32, int]:
    """Copy rows from the database; return vids, squares, and the last vid, which may be a damaged row's."""
    wanted = vectors.stored_vids(db, collection.id, after_vid)
    vids, squares, done = [np.empty(0, np.int64)], [np.empty(0, np.float32)], 0
    ids: list[bytes] = []
    with writer.section("rows") as sink:
        for good, rows, damaged in vectors.stored_rows(db, wanted, collection.dim):
            ready: Any = vectors.searchable(rows, collection.metric)
            if collection.storage == "fp16":
                ready = ready.astype(np.float16)
            sink.write(np.ascontiguousarray(ready))
            vids.append(good)
            names = items.ids_by_vid(db, good.tolist())
            ids += [names[vid].encode() for vid in good.tolist()]
            squares.append(squares_of(ready.astype(np.float32, copy=False)))
            if damaged:
                vectors.log_damaged(collection.name, len(damaged))
            done += len(good) + len(damaged)
            say("copying", done / len(wanted))
    ends = np.cumsum(np.array([len(each) for each in ids], np.int64))
    sections: dict[str, Any] = {"vids": np.concatenate(vids), "squares": np.concatenate(squares)}
    sections |= {"ids": b"".join(ids), "id_ends": ends}
    for name, data in sections.items():
        with writer.section(name) as sink:
            sink.write(data)
    return sections["vids"], sections["squares"], wanted[-1] if wanted else after_vid


def _write_codes(
    part: Part, factory: str, collection: Collection, task: Task, writer: SegmentWriter, say: Say
) -> list[approximate.Point]:
    """Train, encode and tune; write nothing and return no points where the target cannot be reached."""
    faiss.omp_set_num_threads(task.threads)
    rng = np.random.default_rng(SEED)
    index = approximate.make(factory, collection.dim, collection.metric)
    say("training", 0.0)
    _train(index, part, rng)
    for start in range(0, len(part), BLOCK):
        index.add(part.block(start, start + BLOCK))
        say("encoding", min(1.0, (start + BLOCK) / len(part)))
    approximation = Approximation(index, [])
    points = recall.tune(
        approximation,
        part,
        _questions(part, task, rng),
        collection.metric,
        task.target,
        lambda done: say("tuning", done),
    )
    if not points:
        logger.warning(
            "Collection %r: %s does not reach a recall of %s; it stays exact", collection.name, factory, task.target
        )
        return []
    with writer.section("codes") as sink:
        faiss.write_index(index, faiss.PyCallbackIOWriter(sink.write))
    return points


def _train(index: Any, part: Part, rng: np.random.Generator) -> None:
    inner = faiss.extract_index_ivf(index) if faiss.try_extract_index_ivf(index) else None
    if inner is not None:
        inner.cp.niter, inner.cp.max_points_per_centroid, inner.cp.min_points_per_centroid = ROUNDS, PER_LIST, 5
        sample = min(len(part), PER_LIST * int(inner.nlist))
    else:
        sample = min(len(part), 2**17)
    index.train(part.taken(np.sort(rng.choice(len(part), sample, replace=False))))


def _questions(part: Part, task: Task, rng: np.random.Generator) -> recall.Questions:
    if task.queries:
        asked = np.array(task.queries, np.float32)
        return recall.Questions(asked, np.full(len(asked), -1))
    own = np.sort(rng.choice(len(part), min(QUESTIONS, len(part)), replace=False))
    return recall.Questions(part.taken(own), own)


if __name__ == "__main__":
    main()
