"""`likewise labels`: set them, review them, choose what to train on, let a head give them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likewise.cli.output import (
    ADDRESS,
    FAILED_ITEMS,
    AsJson,
    InCollection,
    Server,
    Where,
    connect,
    interval,
    percent,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from likewise.label_results import LabelReview

app = typer.Typer(
    help="Set labels, find wrong ones, and get more of them.", no_args_is_help=True, rich_markup_mode=None
)

Csv = Annotated[Path | None, typer.Option("--csv", help="Write one line for each item to a CSV file.")]
Kind = Annotated[str, typer.Option(help="Kind of the head that judges, as in `likewise heads train`.")]


@app.command("set")
def set_labels(
    collection: InCollection,
    labels: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID=LABEL", help="The label after the last =; nothing there takes it away."),
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="A CSV file with the columns id and label.")] = None,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Give stored items other labels; pictures, vectors and attributes stay. Status 3 if some are not there."""
    if bool(labels) == (source is not None):
        raise typer.BadParameter("give ID=LABEL, or --from a CSV file")
    wanted = dict(_pair(text) for text in labels or []) if source is None else _read(source)
    with connect(server) as lw:
        done = lw.collection(collection).label(wanted)
    if as_json:
        print_json(done)
    else:
        say(f"{done.changed} of {len(wanted)} items have another label now")
    for item_id in done.missing:
        say(f"{item_id}: no such item in {collection!r}")
    if done.missing:
        raise typer.Exit(FAILED_ITEMS)


def _pair(text: str) -> tuple[str, str | None]:
    item_id, equals, label = text.rpartition("=")
    if not equals or not item_id:
        raise typer.BadParameter(f"{text}: write ID=LABEL, or ID= to take the label away")
    return item_id, label or None


def _read(source: Path) -> dict[str, str | None]:
    """Return the labels in a CSV file by id. Raises what tells the person which columns it needs."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"id", "label"} <= set(rows.fieldnames or ()):
                raise typer.BadParameter(f"{source} needs a first line that names the columns id and label")
            return {row["id"]: row["label"] or None for row in rows}
    except (UnicodeDecodeError, csv.Error) as error:
        raise typer.BadParameter(f"{source} is no CSV file in UTF-8: {error}") from error


@app.command()
def review(
    collection: InCollection,
    errors: Annotated[int, typer.Option(min=1, help="Doubtful labels to show.")] = 50,
    count: Annotated[int, typer.Option("--next", min=1, help="Items to label next.")] = 20,
    where: Where = "",
    kind: Kind = "auto",
    report: Annotated[Path | None, typer.Option(help="Write a page with the pictures, where they are here.")] = None,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Show labels that are likely wrong, what to label next, and classes taken for each other."""
    with connect(server) as lw:
        found = lw.collection(collection).review_labels(where=where, errors=errors, next=count, kind=kind)
    if report is not None:
        from likewise.cli.labels_page import write

        say(f"report in {write(found, collection, report)}")
    if as_json:
        print_json(found)
    elif report is None:
        _show(found)
    say(_sentence(found))
    for warning in found.warnings:
        say(f"warning: {warning}")


def _show(found: LabelReview) -> None:
    print_table(
        ("doubtful", "label", "probability", "rather", "probability"),
        [
            (d.id, d.label, percent(d.label_probability), d.suggested, percent(d.suggested_probability))
            for d in found.doubtful
        ],
    )
    print_table(
        ("label next", "why", "guess", "score"),
        [(n.id, n.reason, n.guess or "-", percent(n.score) if n.guess else "-") for n in found.next],
    )
    print_table(
        ("label", "taken for", "items", "share"),
        [(c.label, c.taken_for, c.items, percent(c.share)) for c in found.confused],
    )


def _sentence(found: LabelReview) -> str:
    """Return what was looked at, and the accuracy to expect."""
    text = f"{found.labelled:,} items with a label, {found.unlabelled:,} without"
    if found.metrics is None:
        return text
    m = found.metrics
    return f"{text}; {found.kind} head: accuracy {interval(m.accuracy, m.accuracy_low, m.accuracy_high)}"


@app.command()
def select(
    collection: InCollection,
    target: Annotated[str, typer.Option(help="Collection of the same space that the head is for.")] = "",
    target_where: Annotated[str, typer.Option(help="Which of the target's items stand for it.")] = "",
    keep: Annotated[float, typer.Option(help="Share of each class to keep, the nearest to the target.")] = 0.5,
    where: Where = "",
    kind: Kind = "auto",
    csv_file: Csv = None,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Choose which labelled items to train on for other pictures than these."""
    with connect(server) as lw:
        found = lw.collection(collection).select_source(
            target, target_where=target_where, where=where, keep=keep, kind=kind
        )
    columns = ("id", "label", "kept", "reason", "label_probability", "nearness")
    _write(csv_file, columns, found)
    if as_json:
        print_json(found)
    else:
        all_of, kept = Counter(item.label for item in found), Counter(item.label for item in found if item.kept)
        print_table(("class", "items", "kept"), [(label, all_of[label], kept[label]) for label in sorted(all_of)])
    say(f"{sum(item.kept for item in found):,} of {len(found):,} items to train on")


@app.command()
def pseudo(
    collection: InCollection,
    head: Annotated[str, typer.Option("--head", "-h", help="Name of a trained head.")],
    version: Annotated[int, typer.Option(help="Version of the head; 0 is the latest.")] = 0,
    head_collection: Annotated[str, typer.Option(help="Where the head is, if not here.")] = "",
    where: Where = "",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Score that a label needs.")] = 0.9,
    max_per_class: Annotated[int, typer.Option(min=0, help="The surest of each class; 0 is all.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    csv_file: Csv = None,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Let a head label the unlabelled items that it is sure of; they remember which head it was."""
    with connect(server) as lw:
        found = lw.collection(collection).pseudo_label(
            head,
            version=version,
            head_collection=head_collection,
            where=where,
            min_score=min_score,
            max_per_class=max_per_class,
            dry_run=dry_run,
        )
    _write(csv_file, ("id", "label", "score", "novelty", "taken", "reason"), found)
    if as_json:
        print_json(found)
    else:
        counts = Counter(item.label for item in found.taken)
        print_table(("class", "items"), sorted(counts.items()))
    what = "would be labelled" if dry_run else "labelled"
    say(f"{len(found.taken):,} of {len(found):,} items without a label {what} by {head} v{found.version}")
    if found.taken and not dry_run:
        say("to find them: --where 'exists(label_source)'; docs/labels.md says how to undo it")


def _write(path: Path | None, columns: Sequence[str], found: Iterable[Any]) -> None:
    if path is None:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows([getattr(each, name) for name in columns] for each in found)
