"""`likewise heads`: train, update, list, eval, delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likewise.cli.output import (
    ADDRESS,
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
    from likewise.head_results import AdaptationReport, Head

app = typer.Typer(
    help="Train and measure light classifiers on a collection's labelled items.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Name of the head.")]
Version = Annotated[int, typer.Option(help="Version of the head; 0 is the latest.")]


@app.command()
def train(
    name: Name,
    collection: InCollection,
    kind: Annotated[str, typer.Option(help="auto, ncm, ridge, lda, logreg, knn, mlp or ensemble.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the kind (docs/heads.md); repeatable.")
    ] = None,
    where: Where = "",
    item: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Train on this item; repeatable.")
    ] = None,
    adapt: Annotated[
        str, typer.Option(metavar="METHOD", help="Adapt to other pictures than these: center, coral or ot.")
    ] = "",
    target: Annotated[str, typer.Option(help="Collection of those pictures, with or without labels.")] = "",
    target_where: Annotated[str, typer.Option(help="Which of its items stand for them.")] = "",
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Train a head on the labelled items; the same name again makes the next version."""
    options = dict(_option(text) for text in option or [])
    with connect(server) as lw:
        head = lw.collection(collection).train_head(
            name, kind, where=where, ids=item or None, adapt=adapt, target=target, target_where=target_where, **options
        )
    _show(head, as_json=as_json)


@app.command()
def update(
    name: Name,
    collection: InCollection,
    add_where: Annotated[str, typer.Option(help="Add the labelled items that match, as: added >= 20240501")] = "",
    add_id: Annotated[list[str] | None, typer.Option(metavar="ID", help="Add this item; repeatable.")] = None,
    remove_id: Annotated[list[str] | None, typer.Option(metavar="ID", help="Forget this example; repeatable.")] = None,
    version: Annotated[int, typer.Option(help="Version to start from; 0 is the latest.")] = 0,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Add examples to a head and remove others: the next version, as if trained on the changed set."""
    with connect(server) as lw:
        head = lw.collection(collection).update_head(
            name, where=add_where, add=add_id or None, remove=remove_id or None, version=version
        )
    _show(head, as_json=as_json)


def _show(head: Head, *, as_json: bool) -> None:
    if as_json:
        print_json(head)
        return
    m = head.metrics
    rows = [
        ("head", f"{head.name} v{head.version}"),
        ("kind", head.kind),
        ("why", head.reason or "asked for"),
        ("classes", f"{len(head.classes)}: {', '.join(head.classes[:12])}{' …' if len(head.classes) > 12 else ''}"),  # noqa: PLR2004
        ("items", m.items),
        ("accuracy", f"{interval(m.accuracy, m.accuracy_low, m.accuracy_high)} {m.method or m.note}"),
        ("chance", percent(m.chance)),
        ("known called unknown", percent(m.false_reject_rate)),
        ("unknown let through", percent(m.unknown_accept_rate)),
    ]
    if head.adaptation is not None:
        rows += _adapted(head.adaptation)
    print_table(("", ""), rows)
    for warning in head.warnings:
        say(f"warning: {warning}")


def _adapted(report: AdaptationReport) -> list[tuple[str, Any]]:
    """Return what an adaptation did, for people."""
    rows: list[tuple[str, Any]] = [
        ("adapted by", f"{report.method}: {report.source_items} items to {report.target_items} of the target")
    ]
    if report.gain_low is None or report.gain_high is None:
        return [*rows, ("on the target", "not measured")]
    change = f"{percent(report.accuracy_before)} before, {percent(report.accuracy_after)} after"
    gain = f"gain {100 * report.gain_low:+.1f} to {100 * report.gain_high:+.1f} points"
    return [*rows, ("on the target", f"{change}, {gain}, on {report.measured_items} labelled items")]


@app.command("list")
def list_heads(collection: InCollection, server: Server = ADDRESS, as_json: AsJson = False) -> None:
    """List the heads of a collection, each version."""
    with connect(server) as lw:
        heads = lw.collection(collection).heads()
    if as_json:
        print_json(heads)
        return
    rows = [
        (
            head.name,
            head.version,
            head.kind,
            len(head.classes),
            head.metrics.items,
            interval(head.metrics.accuracy, head.metrics.accuracy_low, head.metrics.accuracy_high),
        )
        for head in heads
    ]
    print_table(("name", "version", "kind", "classes", "items", "accuracy"), rows)


@app.command("eval")
def evaluate(
    name: Name,
    collection: InCollection,
    on: Annotated[str, typer.Option(help="Another collection of the same space to measure on.")] = "",
    where: Where = "",
    version: Version = 0,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with drawings, and the mistakes with their pictures.")
    ] = None,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Measure a head on labelled items, best on ones it was not trained on."""
    with connect(server) as lw:
        found = lw.collection(collection).evaluate(name, version=version, on=on, where=where)
    if report is not None:
        from likewise.cli.heads_page import write

        say(f"report in {write(found, name, collection, on or collection, report)}")
    if as_json:
        print_json(found)
        return
    rows = [
        ("accuracy", interval(found.accuracy, found.accuracy_low, found.accuracy_high)),
        ("macro F1", percent(found.macro_f1)),
        ("calibration error", percent(found.ece)),
        ("known called unknown", percent(found.false_reject_rate)),
        ("unknown let through", percent(found.unknown_accept_rate)),
        ("rejection AUROC", "-" if found.rejection_auroc is None else f"{found.rejection_auroc:.3f}"),
        ("items", f"{found.items}, {found.known_items} of classes it knows"),
    ]
    print_table((f"{name} v{found.version}", ""), rows)
    print_table(
        ("class", "precision", "recall", "F1", "items"),
        [(c.label, percent(c.precision), percent(c.recall), percent(c.f1), c.support) for c in found.classes],
    )
    if found.training_items:
        say(f"warning: {found.training_items} of these items trained the head, which flatters it; use --where or --on")


@app.command()
def delete(name: Name, collection: InCollection, version: Version = 0, server: Server = ADDRESS) -> None:
    """Delete one version of a head, or all of them."""
    with connect(server) as lw:
        lw.collection(collection).delete_head(name, version)
    say(f"deleted {name}{f' v{version}' if version else ', all versions'}")


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--option {text}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
