"""How a head did, on a page: figures with what they mean, drawings, and the mistakes with their pictures."""

from __future__ import annotations

from html import escape
from pathlib import Path

from likewise import charts
from likewise.cli.output import percent
from likewise.demo import page
from likewise.head_results import ConfusedItem, Evaluation

MOST_BARS = 100  # classes in the table
FEW_PAIRS, MOST_PAIRS = 5, 20  # confusions in the list, where the drawing has counts and where not
LONGEST = 60  # letters of a label that are shown


def write(found: Evaluation, head: str, collection: str, measured_on: str, path: Path) -> Path:
    """Write the page and return where it is. Pictures are those whose uri is a file that can be read here."""
    title = f"{head} v{found.version} of {collection}"
    flattered = ""
    if found.training_items:
        flattered = (
            f"<p><b>{found.training_items:,} of these items trained the head, which flatters it.</b> Measure on items "
            "that it has not seen: with --where, or --on another collection.</p>"
        )
    body = (
        f"<header><h1>{escape(title)}</h1><p>Measured on {found.items:,} labelled items of {escape(measured_on)}, "
        f"{found.known_items:,} of them of the {len(found.labels):,} classes the head knows.</p>{flattered}</header>"
        f"{_figures(found)}{_confusion(found)}{_classes(found)}{_scores(found)}{_mistakes(found)}"
    )
    return page.write(path, f"likewise: {title}", body)


def _figures(found: Evaluation) -> str:
    return page.tiles(
        [
            (percent(found.accuracy), f"accuracy over the known items; {_interval(found)}"),
            (percent(found.macro_f1), "macro-F1: the mean over the classes, large or small"),
            (percent(found.ece), "expected calibration error (ECE): how far scores are from the share that is right"),
            (percent(found.false_reject_rate), "of the known items called unknown (false rejects)"),
            (percent(found.unknown_accept_rate), "of the other items given a name (unknown accepts)"),
            (
                "-" if found.rejection_auroc is None else f"{found.rejection_auroc:.3f}",
                "rejection AUROC: the chance that another item looks stranger than a known one",
            ),
        ],
        "Key figures",
    )


def _interval(found: Evaluation) -> str:
    if found.accuracy is None:
        return "none of the items is of a class it knows"
    low, high = percent(found.accuracy_low), percent(found.accuracy_high)
    return f"{low} to {high} is the 95 % interval; “unknown” is a miss"


def _confusion(found: Evaluation) -> str:
    drawn = charts.confusion(found)
    matrix = f'<div class="matrix scroll">{drawn}</div>' if drawn else ""
    many = "" if drawn else f"<p>{len(found.labels):,} classes are too many to draw; these are the most frequent.</p>"
    pairs = charts.confused_pairs(found, FEW_PAIRS if len(found.labels) <= charts.MOST_COUNTS else MOST_PAIRS)
    rows = [(escape(_short(true)), escape(_short(said)), f"{count:,}") for true, said, count in pairs]
    listed = page.table(("class", "taken for", "items"), rows) if rows else "<p>No class was taken for another.</p>"
    return f"<section><h2>What is taken for what</h2>{matrix}{many}{listed}</section>"


def _classes(found: Evaluation) -> str:
    asked = sorted((each for each in found.classes if each.support), key=lambda each: (each.f1, each.label))
    if not asked:
        return ""
    rows = [
        (
            escape(_short(each.label)),
            f'<span class="share"><i style="width:{100 * each.f1:.1f}%"></i></span>',
            percent(each.f1),
            percent(each.precision),
            percent(each.recall),
            f"{each.support:,}",
        )
        for each in asked[:MOST_BARS]
    ]
    rest = f"<p>{len(asked) - MOST_BARS:,} better classes are not shown.</p>" if len(asked) > MOST_BARS else ""
    table = page.table(("class", "", "F1", "precision", "recall", "items"), rows)
    return f"<section><h2>Each class, the worst first</h2>{table}{rest}</section>"


def _scores(found: Evaluation) -> str:
    parts = []
    if found.reliability:
        parts.append(
            "<div><h3>Are the scores right?</h3><p>Of answers with a score of 80 %, 80 % should be right: points on "
            f"the dashed line. Larger points stand for more items; ECE {percent(found.ece)}.</p>"
            f"{charts.reliability(found.reliability)}</div>"
        )
    parts.append(
        "<div><h3>What does silence buy?</h3><p>Accuracy where only the least strange share of the items is answered. "
        f"A class the head does not know cannot be answered rightly.</p>{charts.rejection(found.rejection_curve)}</div>"
    )
    return f'<section><h2>Scores and rejection</h2><div class="pair">{"".join(parts)}</div></section>'


def _mistakes(found: Evaluation) -> str:
    if not found.mistakes:
        return "<section><h2>Mistakes</h2><p>No item was given the name of another class.</p></section>"
    shown = "".join(_mistake(each) for each in found.mistakes)
    return (
        f"<section><h2>The {len(found.mistakes)} surest mistakes</h2><p>The head was sure, and the label says "
        f'otherwise: look whether the label is right.</p><div class="row">{shown}</div></section>'
    )


def _mistake(each: ConfusedItem) -> str:
    # Isolated, so that names written from right to left leave the rest in its order.
    label, answer = (f"\u2068{_short(name)}\u2069" for name in (each.label, each.answer))
    caption = f"{each.id}: {label}, answered {answer} ({percent(each.score)})"
    return page.figure(page.file_here(each.uri), caption, "wrong")


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
