"""What a collection says of itself: its bytes by part, and how it is searched."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from likewise_server.store.segments import FLAT
from likewise_server.store.types import CollectionInfo, IndexState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from likewise_server.store.building import Said
    from likewise_server.store.catalog import Collection
    from likewise_server.store.index import Snapshot
    from likewise_server.store.segments import SegmentRow


def described(
    collection: Collection, rows: Sequence[SegmentRow], snapshot: Snapshot | None, said: Said
) -> CollectionInfo:
    """Return all that a collection says of itself; `rows` are its segments, `snapshot` is None while it is cold."""
    delta = sum(part.nbytes for part in snapshot.in_memory) if snapshot is not None else 0
    used = [part.segment.row for part in snapshot.segments if part.segment] if snapshot is not None else rows
    return CollectionInfo(
        collection.name,
        collection.dim,
        collection.metric,
        collection.fingerprint,
        collection.backbone,
        collection.created_at,
        collection.item_count,
        bytes_by_part(collection, rows, delta),
        collection.index,
        collection.indexed,
        collection.storage,
        state(collection, used, said),
    )


def bytes_by_part(collection: Collection, rows: Sequence[SegmentRow], delta: int) -> dict[str, int]:
    """Return the bytes of vectors in the database, of segments' sections on disk, and of rows in memory only."""
    sections: Counter[str] = Counter(rows=0, codes=0)
    for row in rows:
        for name, section in row.meta.sections.items():
            sections[name] += section.bytes
    return {
        "sqlite": collection.item_count * collection.dim * 4,
        "segments": sum(row.bytes for row in rows),
        "segment_rows": sections["rows"],  # mapped from the file as they are needed
        "segment_codes": sections["codes"],  # in memory
        "delta": delta,
    }


def state(collection: Collection, rows: Sequence[SegmentRow], said: Said) -> IndexState:
    """Return how a collection is searched, going by its segments and what its builder said last."""
    approximate = [row for row in rows if row.factory != FLAT]
    largest = max(approximate, key=lambda row: row.row_count, default=None)
    inside = sum(row.row_count for row in approximate)
    point = largest.meta.points[0] if largest else None
    return IndexState(
        kind=largest.factory if largest else "exact",
        rows=inside,
        delta=max(0, collection.item_count - inside),
        measured_recall=min((row.measured_recall or 0.0 for row in approximate), default=None),
        operating_point=f"effort={point.effort} candidates={point.factor}k" if point else "",
        building=said.step,
        progress=said.progress,
    )
