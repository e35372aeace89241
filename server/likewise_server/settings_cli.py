"""Flags become settings, and mistakes in them a line each."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from likewise_server.settings import Settings


def read_settings(given: dict[str, Any]) -> Settings:
    """Return what flags, environment, file and defaults make together. Leaves with status 2 if that is bad."""
    from pydantic import ValidationError  # noqa: PLC0415  # the light client must not need it

    from likewise_server.settings import Settings  # noqa: PLC0415

    try:
        return Settings(**given)
    except tomllib.TOMLDecodeError as error:
        typer.echo(f"likewise.toml cannot be read: {error}", err=True)
        raise typer.Exit(2) from error
    except ValidationError as error:
        for problem in error.errors():
            typer.echo(f"setting {'.'.join(map(str, problem['loc']))}: {problem['msg']}", err=True)
        raise typer.Exit(2) from error
