"""The command on a real server: what it prints, what it writes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from likewise.demo import server
from likewise.demo.cli import demo
from likewise.demo.extras import DemoError
from likewise.sync import Client

app = typer.Typer()
app.command()(demo)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server.running("likewise-tiny", tmp_path_factory.mktemp("log") / "server.log") as at:
        yield at


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Three classes that anything tells apart, and a file that is no picture."""
    rng = np.random.default_rng(0)
    for c, label in enumerate(("red <&>", "green", "blue")):
        folder = tmp_path / "shapes" / label
        folder.mkdir(parents=True)
        for i in range(8):
            picture = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
            picture[:, :, c] += 150
            Image.fromarray(picture).save(folder / f"{i}.png")
    (tmp_path / "shapes" / "blue" / "broken.jpg").write_bytes(b"this is no picture")
    return tmp_path / "shapes"


def check_report(page: Path) -> str:
    text = page.read_text("utf-8")
    assert text.count('src="data:image/jpeg;base64,') > 10
    assert not re.search(r"https?:|<script|<link|url\(|@import", text)
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == text.count("<img ")
    assert "prefers-color-scheme: dark" in text
    return text


def test_a_folder_gives_json_and_a_report_and_leaves_nothing(address: str, shapes: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, [str(shapes), "--json", "--out", str(tmp_path / "out"), "--server", address], catch_exceptions=False
    )
    assert result.exit_code == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)
    assert figures["backbone"] == "likewise-tiny"
    assert figures["indexing"]["images"] == 24
    assert ["blue/broken.jpg" in failure for failure in figures["indexing"]["failed"]] == [True]
    assert "skipped blue/broken.jpg" in result.stderr
    assert figures["search"]["hit_at_1"]["value"] > 0.9
    assert figures["search"]["chance_at_1"] == pytest.approx(7 / 23)
    assert [shot["shots"] for shot in figures["few_shot"]] == [1]  # four of each are left to learn from
    assert figures["few_shot"][0]["accuracy"]["value"] > 0.8
    assert figures["unknown"][0]["unknown_classes"] == 1
    assert all(0 < took["p50"] <= took["p95"] for took in figures["latency_ms"].values())
    page = check_report(Path(figures["report"]))
    assert "broken.jpg" in page
    assert "red &lt;&amp;&gt;" in page
    assert "red <&>" not in page
    with Client(address) as client:
        assert client.collections() == []


def test_a_torchvision_set_gives_a_table(address: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["--dataset", "FakeData", "--out", str(tmp_path), "--server", address], catch_exceptions=False
    )
    assert result.exit_code == 0, result.stderr
    assert "FakeData: 10 examples a class" in result.stdout
    assert "embed an image" in result.stdout
    assert str(tmp_path / "report.html") in result.stdout
    check_report(tmp_path / "report.html")


def test_what_is_wrong_is_one_sentence_and_no_server_is_started(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "missing"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "is no folder" in result.stderr
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, ["here", "--dataset", "FakeData"]).exit_code == 2


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(DemoError, match=r"did not start.*server\.log(?s:.*)no_such_backbone"),
        server.running("no_such_backbone", tmp_path / "server.log"),
    ):
        pass


def test_the_server_is_stopped_when_the_demo_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = 'import os, time; print(\'{"ready": true, "port": %d}\' % os.getpid(), flush=True); time.sleep(60)'
    monkeypatch.setattr(server, "COMMAND", (sys.executable, "-c", ready))
    pids = []

    def fail() -> None:
        with server.running("any", tmp_path / "log") as at:
            pids.append(int(at.partition(":")[2]))
            os.kill(pids[0], 0)
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
