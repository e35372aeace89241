"""How a head did, as SVG: who is taken for whom, scores against truth, answers against silence.

The colours are those of the page they stand on, so they follow the reader's light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from likewise.head_results import Evaluation, ReliabilityBin

MOST_CLASSES = 30  # that a matrix can show and stay legible
MOST_COUNTS = 16  # classes up to which each cell has room for its number
DARK = 0.55  # share of a row above which a cell needs light figures
SIDE, LEFT, TOP = 260, 64, 14  # of the square that scores or shares of 0 to 1 span


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
    return _svg(left + cell * len(columns) + 40, top + cell * len(titles) + 4, _told(evaluation), parts)


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


def reliability(bins: Sequence[ReliabilityBin]) -> str:
    """Draw how often answers were right against the score they had: on the diagonal a score is what it says."""
    most = max((each.items for each in bins), default=1)
    parts = [*_axes("score", "share that was right"), _line([(0.0, 0.0), (1.0, 1.0)], "chance")]
    parts.append(_line([(each.score, each.accuracy) for each in bins], "line"))
    for each in bins:
        x, y = _place(each.score, each.accuracy)
        title = f"score {_percent(each.score)}, right {_percent(each.accuracy)}, {each.items:,} items"
        radius = 3 + 6 * float(np.sqrt(each.items / most))
        parts.append(f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{title}</title></circle>')
    told = "; ".join(f"score {_percent(b.score)} right {_percent(b.accuracy)} of {b.items}" for b in bins)
    return _svg(LEFT + SIDE + 24, TOP + SIDE + 44, f"Reliability of the scores. {told}", parts)


def rejection(curve: Sequence[tuple[float, float]]) -> str:
    """Draw the accuracy of the answers against the share that is answered, the strangest items being left out first."""
    parts = [*_axes("share answered", "accuracy of the answers"), _line(curve, "line")]
    for share, accuracy in curve:
        x, y = _place(share, accuracy)
        title = f"{_percent(share)} answered, {_percent(accuracy)} of them rightly"
        parts.append(f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{title}</title></circle>')
    told = "; ".join(f"{_percent(share)} answered, {_percent(accuracy)} right" for share, accuracy in curve)
    return _svg(LEFT + SIDE + 24, TOP + SIDE + 44, f"Accuracy by share answered. {told}", parts)


def _axes(across: str, up: str) -> list[str]:
    middle = TOP + SIDE / 2
    parts = [
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>',
        f'<text class="soft" x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 36}" text-anchor="middle">{across}</text>',
        f'<text class="soft" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{up}</text>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _place(tick, tick)
        parts.append(f'<text class="soft" x="{x}" y="{TOP + SIDE + 18}" text-anchor="middle">{100 * tick:.0f}</text>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{100 * tick:.0f}</text>')
    return parts


def _place(across: float, up: float) -> tuple[float, float]:
    return LEFT + SIDE * across, TOP + SIDE * (1 - up)


def _line(points: Sequence[tuple[float, float]], kind: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(*point) for point in points))
    return f'<polyline class="{kind}" fill="none" points="{places}"/>'


def _svg(width: float, height: float, told: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
