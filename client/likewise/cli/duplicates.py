"""`likewise collections duplicates`: groups of items that are nearly the same, from a server or a data directory."""

from __future__ import annotations

import csv
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likewise.cli.output import ADDRESS, AsJson, Server, Where, connect, percent, plain, print_json, print_table, say

if TYPE_CHECKING:
    from likewise.results import Duplicates
    from likewise_proto.v1.collection_pb2 import FindDuplicatesRequest, FindDuplicatesResponse

Offline = Callable[[Path, "FindDuplicatesRequest"], "Iterator[FindDuplicatesResponse]"]


def command(offline: Offline) -> Callable[..., None]:
    """Return the command. `offline` answers out of a data directory; it is the server's, which this package has not."""

    def duplicates(
        name: Annotated[str, typer.Argument(help="Name of the collection.")],
        min_score: Annotated[
            float | None, typer.Option(help="Score from which two items are duplicates. By cosine 0.95 by default.")
        ] = None,
        where: Where = "",
        max_neighbours: Annotated[int, typer.Option(min=0, help="Looked at for each item; 0 is 50.")] = 0,
        csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the groups to a CSV file.")] = None,
        html: Annotated[Path | None, typer.Option(help="Write a page with the pictures, where they are here.")] = None,
        data: Annotated[
            Path | None, typer.Option(help="Read a server's data directory, instead of asking the server.")
        ] = None,
        server: Server = ADDRESS,
        as_json: AsJson = False,
    ) -> None:
        """Find items that are nearly the same: groups of them, the largest first.

        The score of an item is that to the first of its group. To look for duplicates of one picture, say
        `likewise search --min-score`.
        """
        if data is not None:
            found = _offline(offline, data, name, min_score, where, max_neighbours)
        else:
            with connect(server) as lw:
                found = lw.collection(name).duplicates(min_score, where=where, max_neighbours=max_neighbours)
        if csv_file is not None:
            _write_csv(found, csv_file)
        if html is not None:
            from likewise.cli.duplicates_page import write

            say(f"pictures in {write(found, name, html)}")
        if as_json:
            print_json(_as_json(found))
        elif csv_file is None and html is None:
            _print(found)
        say(_sentence(found))

    return duplicates


def _offline(
    offline: Offline, data: Path, name: str, min_score: float | None, where: str, max_neighbours: int
) -> Duplicates:
    import asyncio

    from likewise.duplicates import collected
    from likewise_proto.v1.collection_pb2 import FindDuplicatesRequest

    request = FindDuplicatesRequest(collection=name, min_score=min_score, where=where, max_neighbours=max_neighbours)

    async def replies() -> AsyncGenerator[Any, None]:
        for reply in offline(data, request):
            yield reply

    return asyncio.run(collected(replies(), f"looking for duplicates in {name}"))


def _as_json(found: Duplicates) -> dict[str, Any]:
    return {
        "items": found.items,
        "min_score": found.min_score,
        "exact": found.exact,
        "measured_recall": found.measured_recall,
        "truncated": found.truncated,
        "groups": [plain(group.items) for group in found],
    }


def _rows(found: Duplicates) -> Iterator[tuple[Any, ...]]:
    for number, group in enumerate(found, 1):
        for item in group.items:
            yield number, item.id, f"{item.score:.4f}", item.label, item.uri


def _write_csv(found: Duplicates, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("group", "id", "score", "label", "uri"))
        rows.writerows(_rows(found))


def _print(found: Duplicates) -> None:
    rows, last = list[tuple[Any, ...]](), 0
    for number, *rest in _rows(found):
        rows.append(("" if number == last else number, *rest))
        last = number
    print_table(("group", "id", "score", "label", "uri"), rows)


def _sentence(found: Duplicates) -> str:
    """Return what was found and how far to trust it."""
    text = f"{found.items:,} items, {len(found):,} groups, {found.spare:,} spare at a score of {found.min_score:g}"
    if not found.exact:
        text += f"; by an approximate index that finds {percent(found.measured_recall)} of the neighbours"
    if found.truncated:
        text += (
            f"; {found.truncated:,} items have more neighbours than were looked at: "
            "raise --max-neighbours for what they may link"
        )
    return text
