"""A report for people: tables, the settings with their reasons, and likewise.toml."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from likewise_server.errors import AlreadyExists
from likewise_server.tuning import choose
from likewise_server.tuning.results import Bound, Machine, Measured, Report

EVEN = "Both count: more cores would help, or a GPU for the forwards."
CLOSE = 0.2  # between the shares of two that count alike
BUSY = 0.5  # of the cores, taken by others: the figures are not this machine's
PIPED_WIDTH = 240  # piped output is not cut to a terminal that is not there
ADVICE = {
    "decode": "More cores, or smaller JPEGs, would help; a faster network would not.",
    "forward": "A GPU, more cores or a smaller backbone would help; faster decoding would not.",
}


def show(report: Report) -> None:
    """Print all of it on stdout."""
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, markup=False, highlight=False)
    for line in (_machine(report.machine), f"pictures: {report.pictures}"):
        console.print(line)
    if report.machine.load > BUSY * report.machine.cores:
        console.print(
            f"note: this machine was busy already (a load of {report.machine.load} on {report.machine.cores} cores): "
            "the figures are too low; stop other work, wait a minute, and measure again"
        )
    for one in report.backbones:
        console.print(f"\n{one.backbone}")
        _tables(console, one)
        console.print(_bound(one.bound))
        alone = one.latency
        console.print(
            f"one image alone: {alone.decode_ms + alone.forward_ms:.1f} ms "
            f"(decode {alone.decode_ms:.1f}, forward {alone.forward_ms:.1f})"
        )
        console.print(f"expect {one.images_per_s:.0f} images/s from bytes to vectors, less what the wire takes")
        for note in one.notes:
            console.print(f"note: {note}")
    console.print("\nsettings")
    _print(console, ("setting", "value", "why"), [(c.name, c.value, c.why) for c in report.settings])


def write(report: Report, path: Path, *, force: bool) -> None:
    """Write the settings, and nothing else, as a likewise.toml. Raises AlreadyExists unless `force`."""
    lines = ["# Measured by `likewise tune`:", f"# {_machine(report.machine)}"]
    lines += [f"# {one.backbone}: {one.images_per_s:.0f} images/s" for one in report.backbones]
    for choice in report.settings:
        value = json.dumps(choice.value)  # TOML writes plain text and integers as JSON does
        lines += ["", f"# {choice.why}", f"{choice.name} = {value}"]
    refuse(path, force=force)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def refuse(path: Path, *, force: bool) -> None:
    """Raise AlreadyExists if `path` is there and not to be overwritten."""
    if path.exists() and not force:
        raise AlreadyExists(f"{path} exists: add --force to overwrite all of it, or --write another file")


def _machine(machine: Machine) -> str:
    gpus = "".join(f", {gpu.name} with {gpu.memory_gib} GiB" for gpu in machine.gpus)
    bf16 = "native bf16" if machine.native_bf16 else "no native bf16"
    return f"{machine.processor}, {machine.cores} cores{gpus}; on {machine.device}: {bf16}; torch {machine.torch}"


def _tables(console: Console, one: Measured) -> None:
    decoding = dict.fromkeys(row.decoding for row in one.decode)
    by_threads = {(row.threads, row.decoding): row.images_per_s for row in one.decode}
    _print(
        console,
        ("decode threads", *(f"{name}, images/s" for name in decoding)),
        [(t, *(_rate(by_threads.get((t, name))) for name in decoding)) for t in _sorted(t for t, _ in by_threads)],
    )
    ways = dict.fromkeys((row.execution, row.precision) for row in one.forward)
    by_batch = {(row.batch, row.execution, row.precision): row.images_per_s for row in one.forward}
    _print(
        console,
        ("forward, batch", *(f"{how} {precision}, images/s" for how, precision in ways)),
        [(b, *(_rate(by_batch.get((b, *way))) for way in ways)) for b in _sorted(b for b, _, _ in by_batch)],
    )
    best = choose.best_both(one.both)
    _print(
        console,
        ("both at once: decode threads", "max batch", "images/s", ""),
        [(r.decode_threads, r.max_batch, _rate(r.images_per_s), "chosen" if r is best else "") for r in one.both],
    )


def _bound(bound: Bound) -> str:
    if bound.shared_cores:
        shares = f"of an image's core time decode takes {bound.decode_share:.0%}, the forward {bound.forward_share:.0%}"
    else:
        shares = f"decode threads are busy {bound.decode_share:.0%} of the time, the GPU {bound.forward_share:.0%}"
    even = bound.shared_cores and abs(bound.decode_share - bound.forward_share) < CLOSE
    return f"bound by {bound.by}: {shares}. {EVEN if even else ADVICE[bound.by]}"


def _sorted(values: Iterable[int]) -> list[int]:
    return sorted(set(values))


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004  # three digits


def _print(console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
