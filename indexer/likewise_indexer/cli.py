"""`likewise index`: bring a collection up to date with a folder, a pattern, a list or an archive of images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from likewise_indexer.sources import Source
    from likewise_indexer.summary import Summary


def index(
    path: Annotated[
        str, typer.Argument(help='A folder, a quoted pattern ("photos/**/*.png"), a .csv/.tsv/.parquet list, a .tar.')
    ],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Collection; created if there is none.")],
    backbone: Annotated[
        str | None, typer.Option(help="Backbone of a new collection. By default the server's first.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="cosine, dot or l2, of a new collection; by default cosine.")
    ] = None,
    index_kind: Annotated[
        str | None, typer.Option("--index", help="auto, exact or a FAISS factory, of a new collection.")
    ] = None,
    indexed: Annotated[
        list[str] | None,
        typer.Option(metavar="ATTRIBUTE", help="Attribute of a new collection that filters find quickly; repeatable."),
    ] = None,
    label_from: Annotated[
        str,
        typer.Option(
            help="dir: the name of the folder an image is in; csv: the list's label column or a tar's .cls; none; "
            "auto: csv where there is that, dir for a folder of class folders."
        ),
    ] = "auto",
    server: Annotated[
        str, typer.Option(envvar="LIKEWISE_SERVER", help="Address of the server.", metavar="HOST:PORT")
    ] = "localhost:50051",
    pattern: Annotated[
        str, typer.Option("--pattern", "--glob", help="Only files of the folder whose relative path matches.")
    ] = "",
    path_column: Annotated[str, typer.Option(help="Column of a list that holds the path.")] = "path",
    id_column: Annotated[
        str | None, typer.Option(help="Column that holds the id. By default id, else the path.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column that holds the label; by default label.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Column kept as an attribute; repeatable. By default all others.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Journal file. By default below $XDG_STATE_HOME/likewise.")
    ] = None,
    failures: Annotated[
        Path | None, typer.Option(help="Where failures are listed. By default beside the journal.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the journal; offer all to the server again.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what was indexed and is gone from PATH.")] = False,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds a request may take, and a server that went away is waited for.")
    ] = 120.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count images and labels; send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Index a collection of images; run it again to add what is new or changed.

    A run that was killed continues where it was. Exit status: 0 all is in, 3 some images failed, 1 stopped early.
    """
    from likewise.errors import LikewiseError
    from likewise_indexer.sources import Columns, open_source

    try:
        columns = Columns(path_column, id_column, label_column, attribute or None)
        source = open_source(path, label_from=label_from, pattern=pattern, columns=columns)
        if dry_run:
            _count(source, limit, as_json=as_json)
            return
        options: dict[str, object] = {
            "collection": collection,
            "server": server,
            "backbone": backbone,
            "metric": metric,
            "index": index_kind,
            "indexed": indexed,
            "journal": journal,
            "failures": failures,
            "limit": limit,
            "fresh": fresh,
            "prune": prune,
            "patience_s": patience,
        }
        summary = _run(source, options)
    except LikewiseError as error:
        typer.echo(f"likewise index: {error.message}", err=True)
        raise typer.Exit(1) from error
    typer.echo(json.dumps(summary.as_dict()) if as_json else str(summary))
    if not summary.total and not summary.stopped:
        typer.echo(f"no image in {source.name}: is it the right place? --dry-run counts what a source has", err=True)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _run(source: Source, options: dict[str, object]) -> Summary:
    """Run until done or interrupted: the first signal finishes what is under way, the second gives up."""
    import asyncio
    import logging
    import signal
    from contextlib import suppress

    from likewise.errors import Cancelled
    from likewise_indexer.bulk import run

    logging.basicConfig(format="%(message)s")
    logging.getLogger("likewise.index").setLevel(logging.INFO)

    async def main() -> Summary:
        signals: list[int] = []
        work = asyncio.ensure_future(run(source, stop=lambda: bool(signals), **options))  # type: ignore[arg-type]

        def interrupt() -> None:
            signals.append(1)
            if len(signals) > 1:
                work.cancel()
                return
            typer.echo("stopping when what is under way is done; once more to stop at once", err=True)

        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # on Windows Ctrl-C cancels at once
                asyncio.get_running_loop().add_signal_handler(number, interrupt)
        return await work

    try:
        return asyncio.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        raise Cancelled("interrupted; the same command continues where this one stopped") from error


def _count(source: Source, limit: int | None, *, as_json: bool) -> None:
    """Print how many images a source has, by label."""
    from itertools import islice

    labels: Counter[str | None] = Counter()
    broken = 0
    for entry in islice(source, limit):
        labels[entry.label] += 1
        broken += entry.error is not None
    classes = {label: count for label, count in sorted(labels.items(), key=str) if label is not None}
    if as_json:
        typer.echo(json.dumps({"images": labels.total(), "unreadable": broken, "labels": classes}))
        return
    origin = f"labels from {source.labels}" if source.labels else "no labels"
    typer.echo(f"{labels.total()} images in {source.name}, {origin}" + (f", {broken} unreadable" if broken else ""))
    for label, count in classes.items():
        typer.echo(f"{count:10d}  {label}")
