"""What every command shares: the server's address, JSON or a table, and errors as one line."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from likewise.sync import Client

Server: TypeAlias = Annotated[
    str, typer.Option("--server", envvar="LIKEWISE_SERVER", help="Address of the server.", metavar="HOST:PORT")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
InCollection: TypeAlias = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]
Where: TypeAlias = Annotated[str, typer.Option(help="Keep only items that match, as: label = 'cat' and year >= 2020")]
ADDRESS = "localhost:50051"

FAILED_ITEMS = 3  # exit status when some items failed and the others did not


def connect(server: str) -> Client:
    """Return a client. Its package is imported here, so that --help answers at once."""
    from likewise.sync import Client

    return Client(server)


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False, indent=None if not sys.stdout.isatty() else 2))


def plain(value: Any) -> Any:
    """Return dataclasses, arrays and errors as JSON values."""
    from likewise.errors import LikewiseError

    if isinstance(value, LikewiseError):
        return {"code": value.code, "message": value.message}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under headings, aligned; on a terminal, fitted to it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    # Piped output is not cut to a terminal that is not there.
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False).print(table)


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    typer.echo(text, err=True)


def report_failures(errors: Iterable[tuple[object, Exception]]) -> None:
    """Say which items failed and why; leave with status 3 if there were any."""
    count = 0
    for what, error in errors:
        say(f"{what}: {error}")
        count += 1
    if count:
        raise typer.Exit(FAILED_ITEMS)


def guarded(run: Callable[[], Any]) -> None:
    """Run the command line; errors meant for people are one line and status 1, without a trace."""
    from likewise.errors import LikewiseError

    try:
        run()
    except LikewiseError as error:
        hint = f" (request {error.request_id})" if error.request_id and error.code == "INTERNAL" else ""
        say(f"likewise: {error.message}{hint}")
        sys.exit(1)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `likewise … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        say(f"likewise: {error}")
        sys.exit(1)


def percent(value: float | None) -> str:
    """Return a share as a percentage, "-" for none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return "value (low to high)" in percent, "-" for none."""
    if value is None or low is None or high is None:
        return percent(value)
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
