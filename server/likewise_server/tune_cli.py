"""`likewise tune`: flags into a plan, a report onto stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from likewise_server.settings_cli import read_settings

EXTRA = "likewise tune needs the server's packages: pip install 'likewise[server]'"


def tune(
    backbone: Annotated[
        list[str] | None, typer.Option(help="Backbone to measure; repeat for several. [likewise-tiny]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures like those to come. By default two bundled photographs.")
    ] = None,
    weights_dir: Annotated[Path | None, typer.Option(help="Where weights are looked for before a download.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory of the server; compiled networks are kept in it. [likewise-data]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda:N, or several joined by commas. [auto]")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16: which to measure.")] = "auto",
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds of measuring for each backbone, about; compiling comes on top.")
    ] = 30.0,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Leave compiled forwards out.")] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the settings to a likewise.toml for likewise serve.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --write overwrite a file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure this machine: the settings that suit it, why, and the images a second to expect.

    Stop other work first. Flags that are left out are as `likewise serve` would have them here: from LIKEWISE_… in
    the environment, then likewise.toml.
    """
    # As in `likewise serve`, and read when torch is imported: what is measured is what will be served.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from likewise_server import logs  # noqa: PLC0415  # the light client must not need these
        from likewise_server.errors import LikewiseError  # noqa: PLC0415
        from likewise_server.images import ImageLimits  # noqa: PLC0415
        from likewise_server.tuning import report as reports  # noqa: PLC0415
        from likewise_server.tuning.pictures import bundled, from_folder  # noqa: PLC0415
        from likewise_server.tuning.plan import Plan  # noqa: PLC0415
        from likewise_server.tuning.run import run  # noqa: PLC0415
    except ImportError as error:
        typer.echo(f"{EXTRA} ({error.name} is missing)", err=True)
        raise typer.Exit(2) from error
    given = {"backbone": backbone or None, "weights_dir": weights_dir, "data": data, "device": device}
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    try:
        if write:
            reports.refuse(write, force=force)  # now, not after the minute that measuring takes
        limits = ImageLimits(settings.max_image_bytes, settings.max_pixels)
        plan = Plan(
            backbones=settings.backbone,
            pictures=from_folder(images, limits) if images else bundled(),
            limits=limits,
            device=settings.device,
            precision=precision,
            weights_dir=settings.weights_dir,
            compile_into=None if no_compile else settings.data / "compiled",
            seconds=seconds,
        )
        logs.configure("auto", "warning")
        with _progress() as say:
            report = run(plan, say)
        if write:
            reports.write(report, write, force=force)
    except LikewiseError as error:
        typer.echo(f"likewise tune: {error.message}", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        typer.echo(f"likewise tune: {error}: can the files named be read, and --data and --write written?", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("likewise tune: stopped", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
        return
    reports.show(report)
    if write:
        typer.echo(f"written to {write}; likewise serve reads likewise.toml in the directory that it is started in")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield what rewrites one line on stderr, on a terminal only. No spinner: it would be measured too."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        yield lambda text: print(f"\r\x1b[2K{text} …", end="", file=sys.stderr, flush=True)  # noqa: T201  # a line
    finally:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)  # noqa: T201
