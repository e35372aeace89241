"""What the command line does with a data directory that no server has open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from likewise_proto.v1.collection_pb2 import FindDuplicatesRequest, FindDuplicatesResponse

EXTRA = "--data needs the server's packages: pip install 'likewise[server]'"


def find_duplicates(data: Path, request: FindDuplicatesRequest) -> Iterator[FindDuplicatesResponse]:
    """Yield what a server's FindDuplicates would answer, out of its data directory.

    Ends the command with one line where that is no such directory, where a server has it, or where what is asked is
    not to be had.
    """
    if not (data / "likewise.db").exists():  # opening a store makes one where there is none
        _end(f"{data} is not the --data directory of a likewise server")
    try:
        from likewise_server.errors import LikewiseError  # noqa: PLC0415  # the light client must not need these

        try:
            yield from _found(data, request)
        except LikewiseError as error:
            _end(error.message)
    except ImportError as error:
        _end(f"{EXTRA} ({error.name} is missing)", status=2)


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


def _end(message: str, *, status: int = 1) -> None:
    typer.echo(f"likewise: {message}", err=True)
    raise typer.Exit(status)
