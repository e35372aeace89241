"""`likewise collections`: list, create, update, info, delete, export, fsck; duplicates are in duplicates.py."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likewise.cli.output import ADDRESS, AsJson, Server, Where, connect, percent, print_json, print_table, say

if TYPE_CHECKING:
    from likewise.results import CollectionInfo

app = typer.Typer(help="Look after collections.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Name of the collection.")]
Indexed = Annotated[
    list[str] | None, typer.Option(metavar="ATTRIBUTE", help="Attribute that filters find quickly; repeatable.")
]
INDEX = "auto (exact while that is quick, then approximate), exact, or a FAISS factory."


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
def create(
    name: Name,
    backbone: Annotated[str | None, typer.Option(help="A backbone the server serves; its first by default.")] = None,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Numbers in a vector, for vectors from elsewhere instead.")
    ] = None,
    metric: Annotated[str, typer.Option(help="cosine, dot or l2.")] = "cosine",
    index: Annotated[str, typer.Option(help=INDEX)] = "auto",
    indexed: Indexed = None,
    storage: Annotated[str, typer.Option(help="fp32, or fp16 for half the memory.")] = "fp32",
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Create an empty collection."""
    with connect(server) as lw:
        made = lw.create_collection(
            name, backbone, dim=dim, metric=metric, index=index, indexed=indexed or (), storage=storage
        )
    if as_json:
        print_json(made.info)
    else:
        say(f"created {name!r} of {made.info.backbone or f'{made.info.dim}-d vectors'}")


@app.command()
def update(
    name: Name,
    index: Annotated[str | None, typer.Option(help=INDEX)] = None,
    indexed: Indexed = None,
    no_indexed: Annotated[bool, typer.Option("--no-indexed", help="Index no attribute any more.")] = False,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Change how a collection is searched; the attributes given replace those indexed so far."""
    if index is None and not indexed and not no_indexed:
        raise typer.BadParameter("say what to change: --index, --indexed or --no-indexed")
    if indexed and no_indexed:
        raise typer.BadParameter("--indexed and --no-indexed exclude each other")
    with connect(server) as lw:
        facts = lw.collection(name).update(index=index, indexed=[] if no_indexed else indexed)
    if as_json:
        print_json(facts)
    else:
        names = ", ".join(facts.indexed) or "none"
        say(f"{name!r}: index {facts.index}, attributes indexed: {names}; `likewise collections info` shows progress")


@app.command()
def info(name: Name, server: Server = ADDRESS, as_json: AsJson = False) -> None:
    """Show one collection: its space, its size, how it is searched, its heads."""
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
        *_index_rows(facts),
        *((f"bytes, {part}", _size(size)) for part, size in facts.bytes.items()),
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


def _index_rows(facts: CollectionInfo) -> list[tuple[str, str]]:
    """Return how the collection is searched, for people."""
    state = facts.state
    asked = "" if state.kind == facts.index else f" (asked for: {facts.index})"
    rows = [("index", state.kind + asked)]
    if state.rows:
        rows.append(("in its segment", f"{state.rows:,} vectors"))
    if state.delta:
        rows.append(("beside it", f"{state.delta:,} vectors, compared one by one"))
    if state.measured_recall is not None:
        at = f" at {state.operating_point}" if state.operating_point else ""
        rows.append(("measured recall", percent(state.measured_recall) + at))
    if state.building:
        rows.append(("being built", f"{state.building}, {percent(state.progress)} done"))
    if facts.indexed:
        rows.append(("indexed attributes", ", ".join(facts.indexed)))
    if facts.storage:
        rows.append(("searched vectors in", facts.storage))
    return rows


def _size(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:  # noqa: PLR2004
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _day(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
