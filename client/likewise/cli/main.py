"""The command line: one Typer app; what a command needs is imported when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from likewise._version import __version__
from likewise.cli import backbones, collections, duplicates, heads, images, labels
from likewise.cli.output import ADDRESS, AsJson, Server, connect, guarded, print_json, print_table
from likewise.demo.cli import demo
from likewise_indexer.cli import index
from likewise_server import tokens_cli
from likewise_server.cli import serve
from likewise_server.offline import backup, find_duplicates, restore
from likewise_server.tune_cli import tune
from likewise_training.cli import distill, finetune

app = typer.Typer(
    name="likewise",
    help="Vectors from images, search over them, and new classes from a handful of examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
    context_settings={"help_option_names": ["--help"]},
)
app.command()(serve)
app.command()(tune)
app.command()(demo)
app.command()(index)
app.command()(images.embed)
app.command()(images.search)
app.command()(images.classify)
app.command()(distill)
app.command()(finetune)
collections.app.command()(duplicates.command(find_duplicates))
collections.app.command()(backup)
collections.app.command()(restore)
app.add_typer(backbones.app, name="backbones")
app.add_typer(collections.app, name="collections")
app.add_typer(heads.app, name="heads")
app.add_typer(labels.app, name="labels")
app.add_typer(tokens_cli.app, name="tokens")


@app.command()
def info(server: Server = ADDRESS, as_json: AsJson = False) -> None:
    """Show who answers, and its limits."""
    with connect(server) as lw:
        found = lw.info()
    if as_json:
        print_json(found)
        return
    limits = found.limits
    rows = [
        ("version", found.version),
        ("default backbone", found.default_backbone),
        ("device", found.device),
        ("up", f"{found.uptime_s:.0f} s"),
        ("largest message", f"{limits.max_message_bytes:,} bytes"),
        ("largest image", f"{limits.max_image_bytes:,} bytes, {limits.max_pixels:,} pixels"),
        ("items per message", limits.max_items),
        ("largest k", limits.max_k),
    ]
    print_table((server, ""), rows)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001  # its callback does all
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    ca: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Use TLS; PEM file of the server's authority, or public. Also LIKEWISE_CA."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the token. Also LIKEWISE_TOKEN_FILE, LIKEWISE_TOKEN.")
    ] = None,
) -> None:
    """Vectors from images, search over them, and new classes from a handful of examples."""
    # For every client that the command makes. A token itself is no option: other users see command lines.
    if ca is not None:
        os.environ["LIKEWISE_CA"] = ca
    if token_file is not None:
        os.environ.pop("LIKEWISE_TOKEN", None)
        os.environ["LIKEWISE_TOKEN_FILE"] = str(token_file)


def main() -> None:
    """Run the command line."""
    guarded(app)
