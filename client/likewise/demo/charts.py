"""The report's drawings, as SVG: accuracy bars and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from likewise.demo.fewshot import ShotFigures
from likewise.demo.stats import Rate
from likewise.results import Evaluation

MOST_CLASSES = 30  # that a matrix can show and stay legible
MOST_COUNTS = 16  # classes up to which each cell has room for its number
LEFT, WIDTH = 96, 400  # of the bars
DARK = 0.55  # share of a row above which a cell needs light figures


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


def confusion(evaluation: Evaluation) -> str:
    """Draw the confusion matrix, a row for each true class; "" if there are too many classes to read it."""
    # The last row holds classes the head does not know: empty unless some were hidden from it.
    matrix = evaluation.confusion if evaluation.confusion[-1].sum() else evaluation.confusion[:-1]
    columns = [*evaluation.labels, "unknown"]
    if len(evaluation.labels) > MOST_CLASSES:
        return ""
    titles = columns[: len(matrix)] if len(matrix) < len(columns) else [*evaluation.labels, "never seen"]
    cell = 34 if len(columns) <= MOST_COUNTS + 1 else 20
    left = 24 + 7 * min(18, max(map(len, titles)))
    slanted = max(map(len, evaluation.labels)) > 3  # noqa: PLR2004  # letters that fit over a cell
    top = 30 + (5 * min(18, max(map(len, columns))) if slanted else 24)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    parts = [f'<text class="soft" x="{left}" y="12">answered</text><text class="soft" x="0" y="{top - 8}">true</text>']
    for column, title in enumerate(columns):
        x = left + cell * (column + 0.5)
        tilted = slanted or title == "unknown"
        turn = f' transform="rotate(-45 {x} {top - 6})"' if tilted else ' text-anchor="middle"'
        parts.append(f'<text x="{x}" y="{top - 6}"{turn}>{_short(title)}</text>')
    for row, title in enumerate(titles):
        y = top + cell * row
        parts.append(f'<text x="{left - 8}" y="{y + cell / 2 + 4}" text-anchor="end">{_short(title)}</text>')
        for column, share in enumerate(shares[row]):
            parts.append(_cell(left + cell * column, y, cell, float(share), int(matrix[row, column]), len(columns)))
    width, height = left + cell * len(columns) + 40, top + cell * len(titles) + 4
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(_told(evaluation))}">{"".join(parts)}</svg>'
    )


def confused_pairs(evaluation: Evaluation, most: int = 5) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes: true class, answer, how often; "unknown" is not one of them."""
    known = len(evaluation.labels)
    wrong = evaluation.confusion[:known, :known].copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(place) // known, int(place) % known) for place in places]
    return [(evaluation.labels[i], evaluation.labels[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _cell(x: float, y: float, cell: int, share: float, count: int, columns: int) -> str:
    drawn = f'<rect class="frame" x="{x}" y="{y}" width="{cell}" height="{cell}"/>'
    if not count:
        return drawn
    drawn += f'<rect class="cell" x="{x}" y="{y}" width="{cell}" height="{cell}" fill-opacity="{share:.3f}"/>'
    if columns > MOST_COUNTS + 1:
        return drawn
    tone = ' class="on"' if share > DARK else ""
    return drawn + f'<text x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle"{tone}>{count}</text>'


def _told(evaluation: Evaluation) -> str:
    mistakes = "; ".join(f"{true} taken for {said}: {count}" for true, said, count in confused_pairs(evaluation))
    return f"Confusion matrix of {evaluation.items} pictures. Most frequent mistakes: {mistakes or 'none'}"


def _short(title: str) -> str:
    return escape(title if len(title) <= 18 else title[:17] + "…")  # noqa: PLR2004  # letters beside a matrix
