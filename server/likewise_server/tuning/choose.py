"""From tables to settings: arithmetic alone, nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence

from likewise_server.tuning.results import BothRate, Bound, DecodeRate, Execution, ForwardRate

ENOUGH = 0.95  # of the best rate: less is not worth a larger batch, another precision, or more threads
BURST_S = 0.1  # seconds of work that small calls may always bring
LEAST_BURST, MOST_BURST = 48, 1024  # images: the default; a bound for very fast machines


def rows_of(forward: Sequence[ForwardRate], precision: str, execution: Execution) -> list[ForwardRate]:
    """Return the rows of one way to run."""
    return [row for row in forward if (row.precision, row.execution) == (precision, execution)]


def fastest(rows: Sequence[ForwardRate]) -> float:
    """Return the best rate of a table, images/s; 0 for none."""
    return max((row.images_per_s for row in rows), default=0.0)


def best_batch(rows: Sequence[ForwardRate]) -> int:
    """Return the smallest batch that reaches ENOUGH of the best rate."""
    return min(row.batch for row in rows if row.images_per_s >= ENOUGH * fastest(rows))


def best_threads(decode: Sequence[DecodeRate], decoding: str) -> int:
    """Return the fewest threads that reach ENOUGH of the best rate."""
    rows = [row for row in decode if row.decoding == decoding]
    most = max(row.images_per_s for row in rows)
    return min(row.threads for row in rows if row.images_per_s >= ENOUGH * most)


def decode_at(decode: Sequence[DecodeRate], decoding: str, threads: int) -> DecodeRate:
    """Return the row of `threads`, or of the next fewer that were measured."""
    rows = [row for row in decode if row.decoding == decoding and row.threads <= threads]
    return max(rows, key=lambda row: row.threads)


def forward_at(forward: Sequence[ForwardRate], precision: str, batch: int) -> float:
    """Return images/s in the best execution in batches of `batch`, or of the next smaller that were measured."""
    rows = rows_of(forward, precision, best_execution(forward, precision))
    return max((row for row in rows if row.batch <= batch), key=lambda row: row.batch).images_per_s


def best_precision(forward: Sequence[ForwardRate]) -> str:
    """Return bf16 if it is measured and eagerly faster by more than noise, else what is measured."""
    fp32, bf16 = (fastest(rows_of(forward, name, "eager")) for name in ("fp32", "bf16"))
    return "bf16" if bf16 * ENOUGH > fp32 else "fp32"


def best_execution(forward: Sequence[ForwardRate], precision: str) -> Execution:
    """Return compiled if that is faster by more than noise."""
    eager, compiled = (fastest(rows_of(forward, precision, how)) for how in ("eager", "compiled"))
    return "compiled" if compiled * ENOUGH > eager else "eager"


def combinations(threads: int, batch: int, most: int) -> list[tuple[int, int]]:
    """Return (decode_threads, max_batch) pairs to try at once: the best guess, then its neighbours up to `most`."""
    batch = min(batch, most)
    pairs = [(threads, batch), (max(1, threads // 2), batch)]
    pairs += [(threads, max(1, batch // 2)), (threads, min(2 * batch, most))]
    return list(dict.fromkeys(pairs))


def best_both(both: Sequence[BothRate]) -> BothRate:
    """Return the first row, which is the guess, unless another is faster by more than noise: then the fastest."""
    best = max(both, key=lambda row: row.images_per_s)
    return both[0] if both[0].images_per_s >= ENOUGH * best.images_per_s else best


def bound(decode: DecodeRate, forward: float, both: BothRate, *, cores: int, shared_cores: bool) -> Bound:
    """Return what limits a machine. `forward`: images/s of all devices together, on all `cores` if those are shared."""
    if shared_cores:
        # Core seconds that one image takes in each stage.
        costs = decode.threads / decode.images_per_s, cores / forward
        shares = tuple(cost / sum(costs) for cost in costs)
    else:
        shares = tuple(min(1.0, both.images_per_s / rate) for rate in (decode.images_per_s, forward))
    decode_share, forward_share = (round(share, 3) for share in shares)
    return Bound("decode" if decode_share > forward_share else "forward", decode_share, forward_share, shared_cores)


def burst(images_per_s: float) -> int:
    """Return queue_interactive: the images of BURST_S, in eights."""
    return max(LEAST_BURST, min(MOST_BURST, 8 * round(images_per_s * BURST_S / 8)))
