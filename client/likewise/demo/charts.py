"""The report's own drawing, as SVG: accuracies by number of examples."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from likewise.demo.fewshot import ShotFigures
from likewise.demo.stats import Rate

LEFT, WIDTH = 96, 400  # of the bars


def accuracy_bars(shots: Sequence[ShotFigures]) -> str:
    """Draw the accuracies of one task: for each number of examples a bar for likewise and one for raw pixels."""
    height = 54 * len(shots) + 26
    parts = []
    for i, figures in enumerate(shots):
        y = 54 * i + 4
        examples = f"{figures.shots} example{'s' if figures.shots > 1 else ''}"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 24}" text-anchor="end">{examples}</text>')
        parts += [_bar(figures.accuracy, y, 22, "own"), _bar(figures.pixels, y + 24, 12, "other")]
    chance = LEFT + WIDTH * shots[0].chance
    parts.append(f'<line class="chance" x1="{chance}" x2="{chance}" y1="0" y2="{height - 24}"/>')
    parts.append(f'<text class="soft" x="{chance + 4}" y="{height - 8}">chance</text>')
    told = "; ".join(f"{f.shots}: likewise {f.accuracy.percent}, raw pixels {f.pixels.percent}" for f in shots)
    label = escape(f"Accuracy by examples a class. {told}")
    return f'<svg viewBox="0 0 {LEFT + WIDTH + 70} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bar(rate: Rate, y: float, height: float, kind: str) -> str:
    middle = y + height / 2
    low, high, end = (LEFT + WIDTH * share for share in (rate.low, rate.high, rate.value))
    return (
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{WIDTH * rate.value:.1f}" height="{height}" rx="2"/>'
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<text x="{max(end, high) + 6:.1f}" y="{middle + 4}">{rate.percent}</text>'
    )
