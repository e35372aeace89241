"""`likewise serve`: flags into settings, settings into a running server."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from likewise_server.settings_cli import read_settings

EXTRA = "likewise serve needs the server's packages: pip install 'likewise[server]'"


def serve(
    data: Annotated[Path | None, typer.Option(help="Directory of the collections and heads. [likewise-data]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [50051]")] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Backbone to serve; repeat for several, the first is the default. [likewise-tiny]"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda:N, or several joined by commas. [auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16. [auto]")] = None,
    compile_: Annotated[
        str | None, typer.Option("--compile", help="behind, before or off: compile networks while serving. [behind]")
    ] = None,
    weights_dir: Annotated[Path | None, typer.Option(help="Where weights are looked for before a download.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus metrics.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM: serve with TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key in PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Authorities in PEM: let in only clients with a certificate of theirs.")
    ] = None,
    require_tokens: Annotated[
        bool | None, typer.Option("--require-tokens", help="Let nobody in without a token, also while there is none.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without TLS or tokens.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images in one forward pass. [32]")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json. [auto]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [info]")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of docs/settings.md; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready.")] = False,
) -> None:
    """Serve embeddings, collections and heads over gRPC until interrupted.

    Every flag is also LIKEWISE_… in the environment and a key in likewise.toml; flags win, then the environment.
    """
    # Decode threads share the cores with the forwards' own threads: those must sleep, not spin, while they wait
    # for each other. Read when torch is imported; whoever sets it knows better.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _gone)  # until the server is there to end itself
    try:
        from likewise_server import app, logs  # the light client must not need these
        from likewise_server.errors import LikewiseError
        from likewise_server.settings import Settings
    except ImportError as error:
        typer.echo(f"{EXTRA} ({error.name} is missing)", err=True)
        raise typer.Exit(2) from error

    given: dict[str, Any] = {
        "data": data,
        "host": host,
        "port": port,
        "backbone": backbone or None,
        "device": device,
        "precision": precision,
        "compile": compile_,
        "weights_dir": weights_dir,
        "metrics_port": metrics_port,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "require_tokens": require_tokens,
        "insecure": insecure,
        "max_batch": max_batch,
        "log_format": log_format,
        "log_level": log_level,
    }
    given.update(_pairs(more or []))
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    unknown = set(given) - set(Settings.model_fields)
    if unknown:
        typer.echo(f"unknown setting {', '.join(sorted(unknown))}: docs/settings.md lists them", err=True)
        raise typer.Exit(2)
    logs.configure(settings.log_format, settings.log_level)

    def announce(bound: int) -> None:
        line = {"ready": True, "host": settings.host, "port": bound, "backbones": settings.backbone}
        typer.echo(json.dumps(line) if as_json else f"likewise is ready on {settings.host}:{bound}")
        sys.stdout.flush()

    try:
        status = app.serve(settings, announce)
    except LikewiseError as error:
        typer.echo(f"likewise serve: {error.message}", err=True)
        status = 1
    except OSError as error:
        typer.echo(f"likewise serve: {error}: is --data a directory that can be written to?", err=True)
        status = 1
    # Everything is on disk. A fit that nobody waits for any more must not hold up the end of the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _gone(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


def _pairs(texts: list[str]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text}: write NAME=VALUE")
        pairs[name.replace("-", "_")] = value
    return pairs
