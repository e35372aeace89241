"""A review of labels on a page with pictures: a wrong label is seen, not read."""

from __future__ import annotations

from html import escape
from pathlib import Path

from likewise.cli.output import interval, percent
from likewise.demo import page
from likewise.label_results import DoubtfulLabel, LabelNext, LabelReview


def write(found: LabelReview, collection: str, path: Path) -> Path:
    """Write the page and return where it is. Pictures are those whose uri is a file that can be read here."""
    doubtful = "".join(map(_doubtful, found.doubtful)) or "<p>None.</p>"
    following = "".join(map(_next, found.next)) or "<p>None.</p>"
    confused = page.table(
        ("label", "taken for", "items", "share"),
        [(escape(c.label), escape(c.taken_for), f"{c.items:,}", percent(c.share)) for c in found.confused],
    )
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in found.warnings)
    body = (
        f"<header><h1>Labels of {escape(collection)}</h1></header>{page.tiles(_figures(found), 'Key figures')}"
        "<section><h2>Labels that are likely wrong</h2><p>Each item was judged by a head that was trained without it. "
        "Under the picture: the label it has, and the one that the head gives it, with their probabilities. The surest "
        f'doubts come first; some will be right as they are.</p><div class="row">{doubtful}</div></section>'
        "<section><h2>To label next</h2><p>Typical items are like many that have no label; uncertain ones lie between "
        f'two classes.</p><div class="row">{following}</div></section>'
        f"<section><h2>Classes taken for each other</h2>{confused if found.confused else '<p>None.</p>'}</section>"
        + (f"<section><h2>Warnings</h2><ul>{warnings}</ul></section>" if warnings else "")
    )
    return page.write(path, f"likewise: labels of {collection}", body)


def _figures(found: LabelReview) -> list[tuple[str, str]]:
    shown = [(f"{found.labelled:,}", "items with a label"), (f"{found.unlabelled:,}", "without")]
    m = found.metrics
    if m is not None:
        expected = interval(m.accuracy, m.accuracy_low, m.accuracy_high)
        shown.append((expected, f"accuracy to expect of a {found.kind} head ({m.method or m.note})"))
    return shown


def _doubtful(each: DoubtfulLabel) -> str:
    caption = (
        f"{each.id}: {each.label} {percent(each.label_probability)}, "
        f"rather {each.suggested} {percent(each.suggested_probability)}"
    )
    return page.figure(page.file_here(each.uri), caption, "wrong")


def _next(each: LabelNext) -> str:
    guess = f", {each.guess}? {percent(each.score)}" if each.guess else ""
    return page.figure(page.file_here(each.uri), f"{each.id}: {each.reason}{guess}", "asked")
