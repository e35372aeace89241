"""Candidates from a GPU: an approximate segment's rows, or its index, copied there while they fit.

FAISS's GPU indexes are quick and narrow. They ignore selectors without a word, give at most 2,048 neighbours, know
few types, and want one thread at a time. What they cannot do, the CPU does as before: every answer goes on being
decided by the stored rows, so the GPU changes how long it takes and nothing else.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import faiss as untyped
import numpy as np

from likewise_server.store.parts import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.store.parts import Part, Rows
    from likewise_server.store.types import Float32, Int64

faiss: Any = untyped  # its stubs know half of it
logger = logging.getLogger(__name__)

MOST = 2048  # neighbours of a query, and lists probed
COPIED = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)  # as they are; others as bare rows


class Device(Protocol):
    """What is asked of one GPU; tests have one of their own."""

    def copied(self, index: Any) -> Any:
        """Return the FAISS index on the GPU."""
        ...

    def flat(self, dim: int, metric: int) -> Any:
        """Return an empty index on the GPU that compares all rows, kept in half precision."""
        ...


class FaissDevice:
    """The first GPU that FAISS sees."""

    def __init__(self) -> None:
        self._resources = faiss.StandardGpuResources()

    def copied(self, index: Any) -> Any:
        """See Device."""
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        return faiss.index_cpu_to_gpu(self._resources, 0, index, options)

    def flat(self, dim: int, metric: int) -> Any:
        """See Device."""
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        return faiss.GpuIndexFlat(self._resources, dim, metric, config)


class Gpu:
    """One GPU and the memory that search may take of it. Holds nobody back: who finds it full does without."""

    def __init__(self, device: Device, budget: int) -> None:
        """`budget` in bytes."""
        self._device = device
        self._free = budget
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def hold(self, index: Any, rows: Rows) -> OnGpu | None:
        """Copy a segment there: its index if the GPU knows that type, else its rows `(n, d)`; None if there is no room.

        `rows` as they are searched, `index` FAISS's over their positions.
        """
        kind = faiss.downcast_index(index)
        as_it_is = isinstance(kind, COPIED)
        size = index.ntotal * (kind.code_size + 8) if as_it_is else 2 * rows.size
        with self._lock:
            if size > self._free:
                return None
            self._free -= size
        try:
            with self._one_at_a_time:
                there = self._device.copied(kind) if as_it_is else self._filled(rows, index.metric_type)
        except RuntimeError:
            logger.exception("A segment of %d bytes does not go onto the GPU; the CPU searches it", size)
            self._give_back(size)
            return None
        held = OnGpu(there, self._one_at_a_time, probes=as_it_is)
        weakref.finalize(held, self._give_back, size)
        return held

    def _filled(self, rows: Rows, metric: int) -> Any:
        there = self._device.flat(rows.shape[1], metric)
        for start in range(0, len(rows), BLOCK):
            there.add(np.ascontiguousarray(rows[start : start + BLOCK], np.float32))
        return there

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._free += size


class OnGpu:
    """A segment on the GPU."""

    def __init__(self, index: Any, one_at_a_time: threading.Lock, *, probes: bool) -> None:
        self._index = index
        self._one_at_a_time = one_at_a_time
        self._probes = probes

    def candidates(
        self, part: Part, queries: Float32, count: int, effort: int, bits: NDArray[np.uint8] | None
    ) -> Int64 | None:
        """Return `(n, count)` positions of live rows of `part`, likeliest first, -1 where there are no more.

        None for what a GPU cannot do: rows that a filter lets through, too many neighbours or lists. Dead rows are
        looked for as well, and left out.
        """
        wanted = count + part.dead
        if (bits is not None and bits is not part.alive_bits()) or max(wanted, effort if self._probes else 0) > MOST:
            return None
        how = {"params": faiss.SearchParametersIVF(nprobe=effort)} if self._probes else {}
        with self._one_at_a_time:
            _, found = self._index.search(np.ascontiguousarray(queries), min(wanted, len(part)), **how)
        positions = np.full((len(queries), wanted), -1, np.int64)
        positions[:, : found.shape[1]] = found
        if part.dead:
            positions[~part.alive[positions]] = -1
            # The dead come last, the others stay in their order.
            positions = np.take_along_axis(positions, np.argsort(positions < 0, axis=1, kind="stable"), axis=1)
        return np.ascontiguousarray(positions[:, :count])


def detect(budget: int) -> Gpu | None:
    """Return the GPU that search may take `budget` bytes of; None without one, or without bytes."""
    if not budget or not faiss.get_num_gpus():
        return None
    return Gpu(FaissDevice(), budget)
