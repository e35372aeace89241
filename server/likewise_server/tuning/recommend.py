"""The settings that tables speak for, each with one sentence why."""

from __future__ import annotations

from collections.abc import Sequence

from likewise_server.tuning.choose import (
    BURST_S,
    ENOUGH,
    LEAST_BURST,
    best_batch,
    best_both,
    best_execution,
    best_precision,
    burst,
    fastest,
    rows_of,
)
from likewise_server.tuning.results import BothRate, Choice, DecodeRate, ForwardRate

FINGERPRINT = "It is part of the fingerprint: a collection made with another one stays with it."


def settings(
    decode: Sequence[DecodeRate], forward: Sequence[ForwardRate], both: Sequence[BothRate], notes: Sequence[str] = ()
) -> list[Choice]:
    """Return every setting that follows from one backbone's tables. `notes` say why something was not measured."""
    precision = best_precision(forward)
    execution = best_execution(forward, precision)
    row = best_both(both)
    return [
        Choice("max_batch", row.max_batch, _why_batch(rows_of(forward, precision, execution), both, row)),
        Choice("decode_threads", row.decode_threads, _why_threads(both, row)),
        Choice("precision", precision, f"{_why_precision(forward, precision, notes)} {FINGERPRINT}"),
        Choice("compile", *_compile(forward, precision)),
        Choice("decoding", "scaled", f"{_why_scaled(decode)} {FINGERPRINT}"),
        Choice(
            "queue_interactive",
            burst(row.images_per_s),
            f"small calls may always bring what {BURST_S} s of work clears at {row.images_per_s:.0f} images/s, "
            f"and {LEAST_BURST} images at least; it bounds how long they wait for each other.",
        ),
    ]


def together(found: Sequence[tuple[str, list[Choice]]]) -> list[Choice]:
    """Return settings that suit several backbones, (name, its settings), on one server."""
    if len(found) == 1:
        return found[0][1]
    return [
        _joined([(name, choice) for name, choices in found for choice in choices if choice.name == wanted])
        for wanted in (choice.name for choice in found[0][1])
    ]


def _joined(given: Sequence[tuple[str, Choice]]) -> Choice:
    """Larger batches and more threads suit both; a shorter queue does; one that gains from compiling is enough."""
    setting = given[0][1].name
    values = {choice.value for _, choice in given}
    if setting == "precision" and len(values) > 1:
        wanted = ", ".join(f"{choice.value} for {name}" for name, choice in given)
        return Choice(setting, "auto", f"it takes bf16 where that keeps the vectors; measured best: {wanted}.")
    if setting == "compile":
        name, choice = next((pair for pair in given if pair[1].value != "off"), given[0])
    elif setting == "queue_interactive":
        name, choice = min(given, key=lambda pair: int(pair[1].value))
    elif setting in ("max_batch", "decode_threads"):
        name, choice = max(given, key=lambda pair: int(pair[1].value))
    else:
        name, choice = given[0]
    return Choice(setting, choice.value, f"{name}: {choice.why}")


def _why_batch(rows: Sequence[ForwardRate], both: Sequence[BothRate], row: BothRate) -> str:
    at, least = best_batch(rows), min(rows, key=lambda r: r.batch)
    rate = next(r.images_per_s for r in rows if r.batch == at)
    times = rate / least.images_per_s
    gain = f"forwards reach {rate:.0f} images/s in batches of {at}, {times:.1f} times those of {least.batch}"
    if at == row.max_batch:
        return f"{gain}, and larger ones add little."
    most = max(r.max_batch for r in both)
    if most < at:
        gain += f" (the compiled code takes no more than {most}, found best when it was made)"
    return f"{gain}; with decoding beside them {row.max_batch} gave {row.images_per_s:.0f}."


def _why_threads(both: Sequence[BothRate], row: BothRate) -> str:
    others = [r for r in both if r.decode_threads != row.decode_threads]
    if not others:
        return f"the best number of decode threads: {row.images_per_s:.0f} images/s with forwards beside them."
    other = max(others, key=lambda r: r.images_per_s)
    return (
        f"{row.images_per_s:.0f} images/s with forwards beside them, "
        f"{other.images_per_s:.0f} with {other.decode_threads}."
    )


def _why_precision(forward: Sequence[ForwardRate], precision: str, notes: Sequence[str]) -> str:
    fp32, bf16 = (fastest(rows_of(forward, name, "eager")) for name in ("fp32", "bf16"))
    if fp32 and bf16:
        kept = "it keeps the vectors' cosines" if precision == "bf16" else "not worth other vectors"
        return f"bf16 is {bf16 / fp32:.1f} times as fast as fp32 here, and {kept}."
    why = next((note for note in notes if "bf16" in note), "it was asked for")
    return f"only {precision} was measured: {why}."


def _compile(forward: Sequence[ForwardRate], precision: str) -> tuple[str, str]:
    eager, compiled = (fastest(rows_of(forward, precision, how)) for how in ("eager", "compiled"))
    if not compiled:
        return "behind", "not measured; the server goes on eagerly wherever compiling fails."
    gain = f"compiled forwards are {compiled / eager:.2f} times as fast as eager ones"
    if best_execution(forward, precision) == "compiled":
        return "behind", f"{gain}; the server answers at once and swaps them in, and keeps them for the next start."
    return "off", f"{gain}: not worth the minute that compiling takes."


def _why_scaled(decode: Sequence[DecodeRate]) -> str:
    one = {row.decoding: row.images_per_s for row in decode if row.threads == 1}
    gain = one.get("scaled", 0) / one["full"] if one.get("full") else 0
    if gain * ENOUGH > 1:
        return f"these pictures decode {gain:.1f} times as fast scaled as in full."
    return "these pictures are too small for it to matter, large JPEGs decode several times as fast."
