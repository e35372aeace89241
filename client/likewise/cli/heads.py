"""`likewise heads`: train, list, eval, delete."""

from __future__ import annotations

import json
from typing import Annotated, Any

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
    kind: Annotated[str, typer.Option(help="auto, ncm, knn, ridge or logreg.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the kind (docs/heads.md); repeatable.")
    ] = None,
    where: Where = "",
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Train a head on the labelled items; the same name again makes the next version."""
    options = dict(_option(text) for text in option or [])
    with connect(server) as lw:
        head = lw.collection(collection).train_head(name, kind, where=where, **options)
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
    print_table(("", ""), rows)
    for warning in head.warnings:
        say(f"warning: {warning}")


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
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Measure a head on labelled items, best on ones it was not trained on."""
    with connect(server) as lw:
        found = lw.collection(collection).evaluate(name, version=version, on=on, where=where)
    if as_json:
        print_json(found)
        return
    rows = [
        ("accuracy", interval(found.accuracy, found.accuracy_low, found.accuracy_high)),
        ("macro F1", percent(found.macro_f1)),
        ("calibration error", percent(found.ece)),
        ("known called unknown", percent(found.false_reject_rate)),
        ("unknown let through", percent(found.unknown_accept_rate)),
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
