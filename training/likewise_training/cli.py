"""`likewise distill` and `likewise finetune`: flags into settings, a report onto stdout."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import typer

from likewise_server.settings_cli import read_settings

if TYPE_CHECKING:
    from likewise_training.commands import Report

EXTRA = "training needs the server's packages: pip install 'likewise[server]'"

Data: TypeAlias = Annotated[
    str, typer.Argument(help='A folder, a quoted pattern ("photos/**/*.png"), a .csv/.tsv/.parquet list, a .tar.')
]
Name: TypeAlias = Annotated[str, typer.Option(help="Name of the new backbone, for likewise serve --backbone.")]
WeightsDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Where it is written, and where weights are looked for. Also LIKEWISE_WEIGHTS_DIR.")
]
Run: TypeAlias = Annotated[Path | None, typer.Option(help="Folder of the checkpoint and the log. [likewise-runs/NAME]")]
Steps: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Steps of training.")]
Minutes: TypeAlias = Annotated[float | None, typer.Option(help="End by the clock instead, resumed parts counted.")]
LabelFrom: TypeAlias = Annotated[str | None, typer.Option(help="As for likewise index: auto, dir, csv or none. [auto]")]
Test: TypeAlias = Annotated[
    str | None, typer.Option(help="Other labelled pictures: report few-shot accuracy on them, before and after.")
]
Device: TypeAlias = Annotated[str | None, typer.Option(help="auto, cpu or cuda:N. [auto]")]
More: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of docs/training.md; repeatable."),
]
Force: TypeAlias = Annotated[bool | None, typer.Option("--force", help="Replace a backbone of that name.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def distill(
    data: Data,
    name: Name,
    teacher: Annotated[list[str], typer.Option(help="Any backbone that can be served; repeat for several.")],
    student: Annotated[
        str | None, typer.Option(help="likewise-tiny or a torchvision architecture. [likewise-tiny]")
    ] = None,
    weights_dir: WeightsDir = None,
    run: Run = None,
    steps: Steps = None,
    minutes: Minutes = None,
    label_from: LabelFrom = None,
    test: Test = None,
    device: Device = None,
    more: More = None,
    force: Force = None,
    as_json: AsJson = False,
) -> None:
    """Train a small backbone, from random weights, to see pictures as larger ones do.

    Labels are not needed; where there are some, the student learns the classes too. A run that was killed goes on with
    the same command.
    """
    _main("distill", locals())


def finetune(
    data: Data,
    name: Name,
    backbone: Annotated[str | None, typer.Option(help="Backbone to start from. [likewise-tiny]")] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Train so many of its last blocks. [1]")] = None,
    freeze_norms: Annotated[
        bool | None, typer.Option(help="Keep the batch norms' statistics as they are. [freeze-norms]")
    ] = None,
    weights_dir: WeightsDir = None,
    run: Run = None,
    steps: Steps = None,
    minutes: Minutes = None,
    label_from: LabelFrom = None,
    test: Test = None,
    device: Device = None,
    more: More = None,
    force: Force = None,
    as_json: AsJson = False,
) -> None:
    """Train the last blocks of a backbone with labelled pictures; the result is a new backbone.

    A head learns new classes without this. It pays where your pictures are unlike photographs, and many are labelled.
    A run that was killed goes on with the same command.
    """
    _main("finetune", locals())


def _main(command: str, flags: dict[str, Any]) -> None:
    """Run a command with its flags by name; end it with one line where something is missing or wrong."""
    as_json, given = flags.pop("as_json"), _given(flags)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    try:
        from pydantic import ValidationError

        from likewise.errors import LikewiseError as SourceError
        from likewise_server import logs
        from likewise_server.errors import LikewiseError
        from likewise_training import commands
        from likewise_training.settings import Distill, FineTune
    except ImportError as error:
        _end(f"{EXTRA} ({error.name} is missing)", status=2)
    given.setdefault("weights_dir", read_settings({}).weights_dir)
    if given["weights_dir"] is None:
        _end("say where the new backbone goes: --weights-dir DIR, or LIKEWISE_WEIGHTS_DIR", status=2)
    logs.configure("auto", "warning")
    try:
        if command == "distill":
            report = commands.distill(Distill(**given), _say)
        else:
            report = commands.finetune(FineTune(**given), _say)
    except ValidationError as error:
        for problem in error.errors():
            _say(f"setting {'.'.join(map(str, problem['loc']))}: {problem['msg']}; docs/training.md lists them")
        raise typer.Exit(2) from error
    except (LikewiseError, SourceError) as error:
        _end(f"likewise {command}: {error.message}")
    except OSError as error:
        _end(f"likewise {command}: {error}: can DATA be read, and --run and --weights-dir be written?")
    except KeyboardInterrupt:
        _end(f"likewise {command}: stopped; the same command goes on from the last checkpoint", status=130)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
    else:
        _show(report)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, those of --set among them."""
    more = flags.pop("more") or []
    given = {key: value for key, value in flags.items() if value is not None}
    given.setdefault("run", Path("likewise-runs") / given["name"])
    for text in more:
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text}: write NAME=VALUE")
        given[key.replace("-", "_")] = value
    return given


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _show(report: Report) -> None:
    for item, reason in report.broken:
        typer.echo(f"left out {item}: {reason}", err=True)
    if report.before is not None and report.after is not None:
        typer.echo(f"{report.measure}: {report.before:.2f} before, {report.after:.2f} after {report.kept_step} steps")
        if report.after <= report.before:
            typer.echo("it is no better than before: more pictures, other classes, or fewer blocks may help", err=True)
    for when, (mean, half) in report.test.items():
        typer.echo(f"few-shot accuracy on the test pictures, {when}: {mean:.1f} ± {half:.1f} %")
    if not report.weights:
        typer.echo(f"left off at step {report.steps}; the same command without stop_at goes on")
        return
    where = Path(report.weights)
    typer.echo(f"{where}: {report.dim} dimensions, fingerprint {report.fingerprint} in fp32")
    typer.echo(f"likewise serve --backbone {report.name} --weights-dir {where.parent}")


def _end(message: str, *, status: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(status)
