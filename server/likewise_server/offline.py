"""What the command line does with a data directory itself: duplicates, backup and restore."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from likewise_server.settings_cli import read_settings

if TYPE_CHECKING:
    from likewise_proto.v1.collection_pb2 import FindDuplicatesRequest, FindDuplicatesResponse
    from likewise_server.store.backup import Progress

Data: TypeAlias = Annotated[Path | None, typer.Option(help="Directory of the server's data. [likewise-data]")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]

EXTRA = "--data needs the server's packages: pip install 'likewise[server]'"


def find_duplicates(data: Path, request: FindDuplicatesRequest) -> Iterator[FindDuplicatesResponse]:
    """Yield what a server's FindDuplicates would answer, out of its data directory.

    Ends the command with one line where that is no such directory, where a server has it, or where what is asked is
    not to be had.
    """
    if not (data / "likewise.db").exists():  # opening a store makes one where there is none
        _end(f"{data} is not the --data directory of a likewise server")
    with _reporting():
        yield from _found(data, request)


def _found(data: Path, request: FindDuplicatesRequest) -> Iterator[FindDuplicatesResponse]:
    from likewise_server.engine.duplicates import find_duplicates as found  # noqa: PLC0415
    from likewise_server.servicers.hits import duplicates_reply  # noqa: PLC0415
    from likewise_server.store import open_store  # noqa: PLC0415

    store = open_store(data)
    try:
        events = found(
            store,
            request.collection,
            min_score=request.min_score if request.HasField("min_score") else None,
            where=request.where,
            max_neighbours=request.max_neighbours,
        )
        yield from map(duplicates_reply, events)
    finally:
        store.close()


def backup(
    what: Annotated[list[str], typer.Argument(metavar="COLLECTION OUT", help="OUT alone with --all.")],
    everything: Annotated[bool, typer.Option("--all", help="Every collection.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Write a collection with its heads, or all of them, to the file OUT; the server may be running and writing.

    What was acknowledged before the command began is in it. The file is read back before it gets its name. Status 1 if
    something was damaged already; it is kept as it is, and named.
    """
    if len(what) != (1 if everything else 2):
        raise typer.BadParameter("write COLLECTION OUT, or --all OUT")
    out = Path(what[-1])
    with _reporting():
        from likewise_server.store import backup as backups  # noqa: PLC0415  # the light client must not need it

        with _bar(f"backing up to {out.name}") as progress:
            made = backups.backup(_folder(data), out, "" if everything else what[0], progress=progress)
    if as_json:
        typer.echo(made.model_dump_json())
    for problem in made.problems:
        typer.echo(f"problem: {problem}", err=True)
    for each in made.collections:
        typer.echo(f"{each.name!r}: {each.items} items, {each.heads} head versions in {out}", err=True)
    if made.problems:
        raise typer.Exit(1)


def restore(
    file: Annotated[Path, typer.Argument(metavar="IN", help="What `likewise collections backup` wrote.")],
    collection: Annotated[str, typer.Option(help="Restore only this one of several.")] = "",
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Call it otherwise.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Only read it, and say whether it is whole.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Put the collections of a backup into a data directory that no server has open.

    All of the file is read and checked first; then all of it is restored, or nothing.
    """
    with _reporting():
        from likewise_server.store import backup as backups  # noqa: PLC0415

        if check:
            found = backups.verify(file).collections
        else:
            with _bar(f"restoring {file.name}") as progress:
                found = backups.restore(file, _folder(data), collection, name=name, progress=progress)
    if as_json:
        typer.echo(json.dumps([each.model_dump() for each in found]))
    for each in found:
        done = "is whole" if check else f"restored as {name!r}" if name else "restored"
        typer.echo(f"{each.name!r}: {each.items} items, {each.heads} head versions, {done}", err=True)


def _folder(data: Path | None) -> Path:
    return read_settings({} if data is None else {"data": data}).data


@contextmanager
def _bar(title: str) -> Iterator[Progress | None]:
    """Lend what draws a bar on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    with Bar(console=Console(stderr=True)) as drawn:
        task = drawn.add_task(title, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


@contextmanager
def _reporting() -> Iterator[None]:
    """End the command with one line where something is missing or wrong."""
    try:
        from likewise_server.errors import LikewiseError  # noqa: PLC0415  # the light client must not need these

        try:
            yield
        except LikewiseError as error:
            _end(error.message)
    except ImportError as error:
        _end(f"{EXTRA} ({error.name} is missing)", status=2)


def _end(message: str, *, status: int = 1) -> None:
    typer.echo(f"likewise: {message}", err=True)
    raise typer.Exit(status)
