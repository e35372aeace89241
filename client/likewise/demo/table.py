"""The figures as a short table on stdout."""

from __future__ import annotations

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from likewise.demo.run import Figures


def show(figures: Figures, report: Path) -> None:
    """Print the table and where the report is."""
    console = Console(width=None if sys.stdout.isatty() else 110, markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("likewise", "raw pixels", "chance"):
        table.add_column(column, justify="right")
    for row in rows(figures):
        table.add_row(*row)
    console.print(table)
    timing = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("one call at a time, ms", "p50", "p95"):
        timing.add_column(column, justify="left" if column.startswith("one") else "right")
    for name, latency in figures.latency_ms.items():
        timing.add_row(name, f"{latency.p50:.1f}", f"{latency.p95:.1f}")
    console.print(timing)
    console.print(
        f"{figures.backbone} on {figures.device}: {figures.indexing.images} images indexed,"
        f" {figures.indexing.images_per_second:.0f} images/s; {figures.seconds:.0f} s in all\n"
        "In brackets: 95 % intervals. Raw pixels: the same search or head on 16x16 thumbnails.\n"
        f"The report, with the pictures: {report}",
        soft_wrap=True,
    )


def rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    """Return the lines: what, likewise, raw pixels, chance."""
    search = figures.search
    made = [
        ("search: the first hit is right", str(search.hit_at_1), str(search.pixels_at_1), _percent(search.chance_at_1)),
        ("search: one of five is right", str(search.hit_at_5), str(search.pixels_at_5), _percent(search.chance_at_5)),
    ]
    made += [
        (
            f"{shot.task}: {shot.shots} example{'s' if shot.shots > 1 else ''} a class",
            str(shot.accuracy),
            str(shot.pixels),
            _percent(shot.chance),
        )
        for shot in figures.few_shot
    ]
    for unknown in figures.unknown:
        made += [
            (f"{unknown.task}: known, but called unknown", str(unknown.false_rejects), "", ""),
            (f"{unknown.task}: class never seen, called unknown", str(unknown.rejected), "", ""),
        ]
        if unknown.strangers_rejected:
            made.append((f"{unknown.task}: a photograph, called unknown", str(unknown.strangers_rejected), "", ""))
    return made


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
