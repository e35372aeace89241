"""The command line: one Typer app; what a command needs is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from likewise._version import __version__
from likewise.cli import collections, duplicates, heads, images
from likewise.cli.output import ADDRESS, AsJson, Server, connect, guarded, print_json, print_table
from likewise.demo.cli import demo
from likewise_indexer.cli import index
from likewise_server.cli import serve
from likewise_server.offline import find_duplicates
from likewise_server.tune_cli import tune

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
collections.app.command()(duplicates.command(find_duplicates))
app.add_typer(collections.app, name="collections")
app.add_typer(heads.app, name="heads")


@app.command()
def backbones(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are known but not served.")] = False,
    server: Server = ADDRESS,
    as_json: AsJson = False,
) -> None:
    """List the backbones that the server serves."""
    with connect(server) as lw:
        found = lw.backbones(served_only=not everything)
    if as_json:
        print_json(found)
        return
    rows = [
        (b.name, b.dim, b.input_size, b.device, b.precision, b.execution, b.fingerprint)
        if b.served
        else (b.name, "not served")
        for b in found
    ]
    print_table(
        ("name", "dim", "pixels", "device", "precision", "runs", "fingerprint"),
        [(*row, *[""] * (7 - len(row))) for row in rows],
    )


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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Vectors from images, search over them, and new classes from a handful of examples."""


def main() -> None:
    """Run the command line."""
    guarded(app)
