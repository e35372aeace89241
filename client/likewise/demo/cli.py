"""`likewise demo`: options in, a table or JSON on stdout, a report beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_BACKBONE = "likewise-tiny"


def demo(
    path: Annotated[
        Path | None, typer.Argument(help="A folder of your own, with a folder of pictures for each class.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A torchvision data set by name instead, as CIFAR10 or Flowers102; downloads it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("likewise-demo"),
    backbone: Annotated[str | None, typer.Option(help=f"Backbone to use. [{DEFAULT_BACKBONE}]")] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A running server to use, instead of starting one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Index, search and learn pictures on a real server; print what it achieves and write a report with them.

    Without PATH, photographs that come with scikit-image are searched and scikit-learn's handwritten digits
    learned: nothing is downloaded. Raw pixels and chance stand beside every figure.
    """
    from likewise.demo import folders, report, table
    from likewise.demo.extras import DemoError
    from likewise.demo.run import BUNDLED, SEED, run
    from likewise.demo.server import running
    from likewise.errors import LikewiseError
    from likewise.sync import Client

    if path and dataset:
        raise typer.BadParameter("give a folder or --dataset, not both")

    def say(text: str) -> None:
        typer.echo(f"demo: {text}", err=True)

    try:
        own, data = None, BUNDLED
        if path:
            own, data = folders.folder(path, SEED), str(path)
        elif dataset:
            say(f"reading {dataset}, which is downloaded if it is not here yet")
            own, data = folders.torchvision_set(dataset, out / "data", SEED), dataset
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if server:
                client = Client(server)
            else:
                say("starting a server")
                own_server = stack.enter_context(running(backbone or DEFAULT_BACKBONE, out / "server.log"))
                # What the environment has is for other servers.
                client = Client(own_server, ca="", cert="", key="", token="")
            outcome = run(stack.enter_context(client), backbone, own, data, say)
        page = report.write(outcome, out / "report.html")
    except (DemoError, LikewiseError, OSError) as error:
        typer.echo(f"likewise demo: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("likewise demo: stopped", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(outcome.figures), "report": str(page)}))
        return
    table.show(outcome.figures, page)
