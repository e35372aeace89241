"""One HTML file with the figures, the pictures and what they mean; it refers to nothing outside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from likewise.charts import confusion
from likewise.demo import charts, gallery, page, words
from likewise.demo.fewshot import DRAWS, ShotFigures
from likewise.demo.run import BUNDLED, Figures, Outcome


def write(outcome: Outcome, path: Path) -> Path:
    """Write the report to `path` and return it."""
    figures = outcome.figures
    body = "\n".join(
        [_head(figures), _search(outcome), _few_shot(outcome), _unknown(outcome), _speed(figures), _how(figures)]
    )
    return page.write(path, "likewise: what the demo found", body)


def _head(figures: Figures) -> str:
    last = [shot for shot in figures.few_shot if shot.task == figures.few_shot[0].task][-1]
    tiles = [
        (f"{figures.indexing.images_per_second:.0f}/s", f"images indexed, {figures.indexing.images} in all"),
        (figures.search.hit_at_1.percent, f"of {figures.search.queries} searches put a right picture first"),
        (last.accuracy.percent, f"right after {words.examples(last.shots)} of each class ({last.task})"),
        (f"{figures.latency_ms['embed an image'].p50:.1f} ms", "to embed one image, median"),
    ]
    return (
        "<header><h1>What likewise made of these pictures</h1>"
        f"<p>{escape(words.opening(figures))}</p></header>"
        f"{page.tiles(tiles, 'Key figures')}"
    )


def _search(outcome: Outcome) -> str:
    search = outcome.figures.search
    rows = [
        ("the first hit is right", search.hit_at_1, search.pixels_at_1, search.chance_at_1),
        ("one of the first five is right", search.hit_at_5, search.pixels_at_5, search.chance_at_5),
    ]
    table = page.table(
        ("", "likewise", "raw pixels", "chance"),
        [(what, str(own), str(pixels), f"{100 * chance:.1f} %") for what, own, pixels, chance in rows],
    )
    changes = ""
    if search.by_change:
        changes = "<h3>First hit right, by what was done to the query</h3>" + page.table(
            ("", "likewise"), [(change, str(rate)) for change, rate in search.by_change.items()]
        )
    right = gallery.searches(outcome.found, outcome.searched, right=True)
    wrong = gallery.searches(outcome.found, outcome.searched, right=False)
    return (
        f"<section><h2>Search</h2><p>{escape(words.search(outcome.figures))}</p>{table}{changes}"
        "<h3>Found: the query first, then its five nearest with their cosine similarity</h3>"
        f"{right or '<p>None.</p>'}<h3>Not found</h3>{wrong or '<p>None: every first hit was right.</p>'}</section>"
    )


def _few_shot(outcome: Outcome) -> str:
    figures, taught = outcome.figures, outcome.taught
    parts = [f"<section><h2>New classes from a few examples</h2><p>{escape(words.few_shot(figures))}</p>"]
    for task in dict.fromkeys(shot.task for shot in figures.few_shot):
        shots = [shot for shot in figures.few_shot if shot.task == task]
        parts.append(f'<h3>{escape(task.capitalize())}</h3><div class="chart">{charts.accuracy_bars(shots)}</div>')
        parts.append(_shot_table(shots))
    parts += [
        f"<h3>One head, looked at closely</h3><p>{escape(words.head(taught))}</p>",
        f'<div class="matrix scroll">{confusion(taught.evaluation)}</div>',
        f"<p>{escape(words.confusions(taught.evaluation))}</p>",
        "<h3>Right answers, with probabilities and the nearest examples it was shown</h3>",
        gallery.predictions(taught, outcome.learned, "right") or "<p>None.</p>",
        "<h3>Wrong answers</h3>",
        gallery.predictions(taught, outcome.learned, "wrong") or "<p>None.</p>",
        "</section>",
    ]
    return "".join(parts)


def _unknown(outcome: Outcome) -> str:
    figures, open_set = outcome.figures, outcome.open_set
    if open_set is None:
        return (
            "<section><h2>Unknown</h2><p>Needs three classes: one to hide from the head and two to know.</p></section>"
        )
    rows = [
        (
            escape(unknown.task),
            str(unknown.false_rejects),
            str(unknown.rejected),
            str(unknown.strangers_rejected) if unknown.strangers_rejected else "-",
        )
        for unknown in figures.unknown
    ]
    columns = ("called unknown", "its own classes", "classes never seen", "photographs")
    return (
        f"<section><h2>“Unknown” is an answer</h2><p>{escape(words.unknown(figures))}</p>{page.table(columns, rows)}"
        f'<div class="matrix scroll">{confusion(open_set.evaluation)}</div>'
        "<h3>Never seen, and called unknown</h3>"
        f"{gallery.predictions(open_set, outcome.learned, 'turned away') or '<p>None.</p>'}"
        "<h3>Never seen, yet given a name</h3>"
        f"{gallery.predictions(open_set, outcome.learned, 'let through') or '<p>None.</p>'}</section>"
    )


def _speed(figures: Figures) -> str:
    rows = [(name, f"{took.p50:.1f}", f"{took.p95:.1f}") for name, took in figures.latency_ms.items()]
    skipped = "".join(f"<li>{escape(failure)}</li>" for failure in figures.indexing.failed[:50])
    listed = (
        f"<h3>Skipped: {len(figures.indexing.failed)} that could not be read</h3><ul>{skipped}</ul>" if skipped else ""
    )
    return (
        f"<section><h2>Speed</h2><p>{escape(words.speed(figures))}</p>"
        f"{page.table(('milliseconds', 'median', '95th percentile'), rows)}{listed}</section>"
    )


def _how(figures: Figures) -> str:
    sources = (
        " The photographs come inside scikit-image's and scikit-learn's packages, the digits inside scikit-learn's."
        if figures.data == BUNDLED
        else ""
    )
    return (
        f"<footer><p>likewise {escape(figures.version)}, backbone <code>{escape(figures.backbone)}</code> on"
        f" {escape(figures.device)}, space <code>{escape(figures.fingerprint)}</code>, seed {figures.seed},"
        f" {figures.seconds:.0f} seconds.{sources} Figures in brackets are 95 % intervals: Wilson's for searches,"
        f" Student's t over {DRAWS} draws of the examples for accuracies. “Raw pixels” is the same search, or the same"
        " kind of head, on the pictures shrunk to 16x16 RGB: what it gets, one gets without a backbone.</p></footer>"
    )


def _shot_table(shots: Sequence[ShotFigures]) -> str:
    columns = ("examples a class", "head", "likewise", "raw pixels", "pixel centroids", "chance")
    rows = [
        (str(s.shots), s.head, str(s.accuracy), str(s.pixels), str(s.pixel_centroids), f"{100 * s.chance:.1f} %")
        for s in shots
    ]
    return page.table(columns, rows)
