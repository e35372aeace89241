"""`likewise tokens`: make, list and revoke them, in a data directory whose server may be running."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from likewise_server.settings_cli import read_settings

EXTRA = "likewise tokens needs the server's packages: pip install 'likewise[server]'"

app = typer.Typer(
    help="Make, list and revoke tokens, on the machine where the server's data is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Data: TypeAlias = Annotated[Path | None, typer.Option(help="Directory of the server's data. [likewise-data]")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call it, in lists and in the audit log.")],
    scope: Annotated[
        list[str], typer.Option(help="embed, search, write, train, admin: several joined by commas, or repeated.")
    ],
    collection: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only collections of this name, as pets or 'pets-*'; repeatable."),
    ] = None,
    requests_per_s: Annotated[
        float | None, typer.Option("--requests-per-s", help="Calls, and messages of streams, a second.")
    ] = None,
    bytes_per_s: Annotated[float | None, typer.Option("--bytes-per-s", help="Bytes it may send a second.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once. A running server knows it within a second.

    The first one closes the server to everyone without: from then on, every call needs a token.
    """
    with _reporting():
        from likewise_server import tokens  # noqa: PLC0415  # the light client must not need it

        folder = _folder(data)
        made = tokens.create(
            folder,
            name,
            scopes=[part.strip() for text in scope for part in text.split(",") if part.strip()],
            collections=collection or (),
            requests_per_s=requests_per_s,
            bytes_per_s=bytes_per_s,
        )
    typer.echo(json.dumps({"name": name, "token": made}) if as_json else made)
    typer.echo(f"keep it: it is shown this once; {folder / tokens.FILE} has its hash only", err=True)


@app.command("list")
def list_tokens(data: Data = None, as_json: AsJson = False) -> None:
    """List the tokens there are: what they may do, never what they are."""
    with _reporting():
        from likewise_server import tokens  # noqa: PLC0415

        found = tokens.listed(_folder(data))
    for token in found:
        if as_json:
            facts = dataclasses.asdict(token)
            del facts["sha256"]
            typer.echo(json.dumps(facts))
            continue
        quotas = [f"{token.requests_per_s:g} requests/s"] if token.requests_per_s is not None else []
        quotas += [f"{token.bytes_per_s:g} bytes/s"] if token.bytes_per_s is not None else []
        parts = [
            token.name,
            token.id,
            ",".join(token.scopes),
            ",".join(token.collections) or "all collections",
            ", ".join(quotas) or "no quota",
            token.created,
        ]
        typer.echo("  ".join(parts))


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Of the token.")], data: Data = None) -> None:
    """Take a token away. A running server refuses it within a second, also on streams that are open.

    Without a token left, nobody comes in.
    """
    with _reporting():
        from likewise_server import tokens  # noqa: PLC0415

        tokens.revoke(_folder(data), name)
    typer.echo(f"{name} is revoked", err=True)


def _folder(data: Path | None) -> Path:
    return read_settings({} if data is None else {"data": data}).data


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """End the command with one line where something is missing or wrong."""
    try:
        from likewise_server.errors import LikewiseError  # noqa: PLC0415

        try:
            yield
        except LikewiseError as error:
            typer.echo(f"likewise tokens: {error.message}", err=True)
            raise typer.Exit(1) from error
        except OSError as error:
            typer.echo(f"likewise tokens: {error}: is --data a directory that can be written to?", err=True)
            raise typer.Exit(1) from error
    except ImportError as error:
        typer.echo(f"{EXTRA} ({error.name} is missing)", err=True)
        raise typer.Exit(2) from error
