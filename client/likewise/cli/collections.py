"""`likewise collections`: list, info, delete, export, fsck."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from likewise.cli.output import ADDRESS, AsJson, Server, Where, connect, print_json, print_table, say

app = typer.Typer(help="Look after collections.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Name of the collection.")]


@app.command("list")
def list_collections(server: Server = ADDRESS, as_json: AsJson = False) -> None:
    """List the collections."""
    with connect(server) as lw:
        found = lw.collections()
    if as_json:
        print_json(found)
        return
    rows = [
        (c.name, c.count, c.dim, c.metric, c.backbone or "(vectors from elsewhere)", _day(c.created_at)) for c in found
    ]
    print_table(("name", "items", "dim", "metric", "backbone", "created"), rows)


@app.command()
def info(name: Name, server: Server = ADDRESS, as_json: AsJson = False) -> None:
    """Show one collection: its space, its size, its heads."""
    with connect(server) as lw:
        collection = lw.collection(name)
        facts, heads = collection.info, collection.heads()
    if as_json:
        print_json({"collection": facts, "heads": heads})
        return
    rows = [
        ("items", facts.count),
        ("dim", facts.dim),
        ("metric", facts.metric),
        ("backbone", facts.backbone or "(vectors from elsewhere)"),
        ("fingerprint", facts.fingerprint),
        ("created", _day(facts.created_at)),
        *((f"bytes, {part}", f"{size:,}") for part, size in facts.bytes.items()),
        ("heads", ", ".join(f"{head.name} v{head.version} ({head.kind})" for head in heads) or "none"),
    ]
    print_table((name, ""), rows)


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: Server = ADDRESS,
) -> None:
    """Delete a collection with its items and heads."""
    with connect(server) as lw:
        count = lw.collection(name).count()
        if not yes:
            typer.confirm(f"Delete {name!r} with its {count} items and its heads?", abort=True)
        lw.delete_collection(name)
    say(f"deleted {name!r} ({count} items)")


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="File to write: .parquet, or .npy (with a .jsonl beside it).")],
    where: Where = "",
    server: Server = ADDRESS,
) -> None:
    """Write items and their vectors to a file."""
    with connect(server) as lw:
        written = lw.collection(name).export(out, where=where)
    say(f"{written} items in {out}")


@app.command()
def fsck(
    name: Name,
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild what is derived.")] = False,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Verify checksums, counts and derived files; status 1 if something is wrong and was not set right."""
    with connect(server) as lw:
        report = lw.collection(name).check(repair=repair)
    if as_json:
        print_json(report)
    else:
        for problem in report.problems:
            say(f"problem: {problem}")
        for done in report.repaired:
            say(f"repaired: {done}")
        say(f"{report.items_checked} items checked, {len(report.problems)} problems")
    if report.problems and not report.repaired:
        raise typer.Exit(1)


def _day(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
