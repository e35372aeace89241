"""`likewise index` as a command: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from likewise import Client
from likewise_indexer.cli import index

app = typer.Typer()
app.command()(index)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prints_a_summary_and_then_that_all_is_known(counted: Any, photos: Path, lw: Client, name: str) -> None:
    first = invoke(photos, "--collection", name, "--server", counted.address)
    assert first.exit_code == 0, first.output
    assert "12 new, 0 updated, 0 unchanged on the server, 0 skipped, 0 failed" in first.stdout
    assert "labels from folder names" in first.stdout
    second = invoke(photos, "--collection", name, "--server", counted.address, "--json")
    told = json.loads(second.stdout)
    assert (told["skipped"], told["new"], told["total"], told["exit_code"]) == (12, 0, 12, 0)
    lw.delete_collection(name)


def test_failures_are_listed_where_asked_and_make_the_status_3(
    counted: Any, photos: Path, lw: Client, name: str, tmp_path: Path
) -> None:
    (photos / "class0/bad.jpg").write_bytes(b"no")
    listed = tmp_path / "listed.jsonl"
    result = invoke(photos, "-c", name, "--server", counted.address, "--failures", listed)
    assert result.exit_code == 3
    assert f"failures: {listed}" in result.stdout
    assert json.loads(listed.read_text())["id"] == "class0/bad.jpg"
    lw.delete_collection(name)


def test_a_source_without_images_is_told(counted: Any, lw: Client, name: str, tmp_path: Path) -> None:
    result = invoke(tmp_path, "-c", name, "--server", counted.address)
    assert result.exit_code == 0
    assert "no image in" in result.stderr
    lw.delete_collection(name)


def test_dry_run_counts_without_a_server(photos: Path) -> None:
    result = invoke(photos, "-c", "c", "--server", "127.0.0.1:1", "--dry-run")
    assert result.exit_code == 0
    assert "12 images in" in result.stdout
    assert result.stdout.splitlines()[1].split() == ["6", "class0"]
    told = json.loads(invoke(photos, "-c", "c", "--dry-run", "--json", "--limit", 7).stdout)
    assert told == {"images": 7, "unreadable": 0, "labels": {"class0": 6, "class1": 1}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no nowhere"),
        ([".", "--label-from", "sky"], "--label-from is 'sky'"),
        ([".", "--server", "127.0.0.1:1"], "likewise serve"),
    ],
)
def test_errors_are_one_line_and_status_1(arguments: list[str], said: str) -> None:
    result = invoke(*arguments, "-c", "c")
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_mentions_every_exit_status() -> None:
    result = invoke("--help")
    assert all(text in result.output for text in ("0 all is in", "3 some", "1 stopped"))


def test_importing_the_command_is_light_and_the_indexer_needs_neither_torch_nor_the_server() -> None:
    code = (
        "import sys, likewise_indexer.cli; assert not {'grpc', 'numpy', 'sqlite3', 'pyarrow'} & set(sys.modules)\n"
        "import likewise_indexer.bulk\n"
        "assert not {'torch', 'likewise_server', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
