"""Rows in memory, or mapped into it, that never change; only which of them are alive does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from likewise_server.store.approximate import Approximation
    from likewise_server.store.codes import Codes
    from likewise_server.store.segments import Segment
    from likewise_server.store.types import Bool, Float32, Int64

    Rows = NDArray[np.float32] | NDArray[np.float16]

BLOCK = 16_384


@dataclass(frozen=True, slots=True)
class Names:
    """The ids of a segment's items, end to end in UTF-8; `ends` `(n,)` int64."""

    text: memoryview
    ends: Int64

    def at(self, positions: Int64) -> list[str]:
        """Return the ids of the items at these positions."""
        starts = np.where(positions > 0, self.ends[np.maximum(positions - 1, 0)], 0)
        ends = self.ends[positions]
        return [str(self.text[start:end], "utf-8") for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Part:
    """`vids` `(n,)` ascending, `rows` `(n, d)` searchable, float32 or float16, `alive` `(n,)`.

    `squares` `(n,)` are the squared lengths of the rows, `dead` counts those not alive. `segment` is what the
    rows are mapped from, None for those that are in none yet, which may have `codes`, or be in `lists`.
    """

    vids: Int64
    rows: Rows
    alive: Bool
    squares: Float32
    dead: int = 0
    segment: Segment | None = None
    codes: Codes | None = None
    lists: Approximation | None = None
    _bits: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, vids: Int64, rows: Rows, squares: Float32, segment: Segment | None = None) -> Part:
        """Return rows that are all alive."""
        return cls(vids, rows, np.ones(len(vids), np.bool_), squares, 0, segment)

    def __len__(self) -> int:
        return len(self.vids)

    @property
    def approximation(self) -> Approximation | None:
        """Return what finds near rows without looking at all of them, if there is that."""
        return self.segment.approximation if self.segment else self.lists

    @property
    def nbytes(self) -> int:
        """Return how much memory the rows take, mapped or not, and their codes."""
        return int(self.rows.nbytes) + (0 if self.codes is None else self.codes.nbytes)

    def only(self, alive: Bool) -> Part:
        """Return the same rows, of which these are alive."""
        return replace(self, alive=alive, dead=len(alive) - int(np.count_nonzero(alive)), _bits=[])

    def without(self, removed: Int64) -> Part:
        """Return the same rows, those with these vids dead."""
        at = self.positions_of(removed)
        if not len(at):
            return self
        alive = self.alive.copy()
        alive[at] = False
        return self.only(alive)

    def between(self, start: int, stop: int) -> Part:
        """Return the rows from `start` to `stop`, of no segment and in no lists."""
        part = Part(self.vids[start:stop], self.rows[start:stop], self.alive[start:stop], self.squares[start:stop])
        return part.only(part.alive)

    def positions_of(self, vids: Int64) -> Int64:
        """Return the positions of those of the vids that are here, in the order of `vids`."""
        if not len(self.vids) or not len(vids):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.vids, vids), len(self.vids) - 1)
        return np.asarray(at[self.vids[at] == vids], np.int64)

    def mask_of(self, vids: Int64) -> Bool:
        """Return `(n,)`, true at the rows with these vids; vids of other parts are passed over."""
        mask = np.zeros(len(self.vids), np.bool_)
        mask[self.positions_of(vids)] = True
        return mask

    def alive_bits(self) -> NDArray[np.uint8] | None:
        """Return `alive` as a bitmap, lowest bit first, None where all are."""
        if not self.dead:
            return None
        if not self._bits:
            self._bits.append(packed(self.alive))
        return self._bits[0]

    def block(self, start: int, stop: int) -> Float32:
        """Return rows from `start` to `stop` in float32."""
        return np.asarray(self.rows[start:stop], np.float32)

    def taken(self, positions: Any) -> Float32:
        """Return copies of the rows at `positions` in float32."""
        return np.asarray(self.rows[positions], np.float32)


def packed(mask: Bool) -> NDArray[np.uint8]:
    """Return a mask as FAISS's bitmap selector wants it."""
    return np.packbits(mask, bitorder="little")


def squares_of(rows: Float32) -> Float32:
    """Return the squared lengths `(n,)` of rows `(n, d)`."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float32)


def empty_part(dim: int) -> Part:
    """Return no rows at all."""
    return Part.of(np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty(0, np.float32))
