"""The command line, run as a person would, against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise import Client
from support.pictures import digit_images, photograph_jpegs
from support.server import ServerProcess, clean_environment, start_server


class Cli:
    """Runs `likewise` with the test server's address."""

    def __init__(self, address: str, folder: Path) -> None:
        self.environment = {**clean_environment(), "LIKEWISE_SERVER": address, "COLUMNS": "200"}
        self.folder = folder

    def __call__(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "likewise.cli", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.folder, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status).stdout)


@pytest.fixture
def cli(server: ServerProcess, tmp_path: Path) -> Cli:
    return Cli(server.address, tmp_path)


@pytest.fixture
def digits(client: Client) -> Iterator[str]:
    name = f"digits-{uuid.uuid4().hex[:6]}"
    images, labels = digit_images(12, classes=3)
    made = client.create_collection(name)
    made.add(images, ids=[f"d{i}" for i in range(36)], labels=labels, attributes=[{"n": i} for i in range(36)])
    yield name
    client.delete_collection(name)


def test_help_and_version(cli: Cli) -> None:
    text = cli("--help").stdout
    for command in (
        "serve",
        "demo",
        "index",
        "embed",
        "search",
        "classify",
        "backbones",
        "info",
        "collections",
        "heads",
    ):
        assert command in text
        assert cli(command, "--help").stdout
    assert cli("--version").stdout.strip() == "0.1.0"


def test_info_and_backbones(cli: Cli) -> None:
    assert "likewise-tiny" in cli("info").stdout
    assert cli.json("info")["limits"]["max_items"] == 1024
    assert "likewise-tiny" in cli("backbones").stdout
    assert {"resnet50", "likewise-tiny"} <= {b["name"] for b in cli.json("backbones", "--all")}


def test_embed_writes_a_matrix(cli: Cli, photo_files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    facts = cli.json("embed", *photo_files[:3], "--out", out)
    matrix = np.load(out)
    assert matrix.shape == (3, facts["dim"])
    assert matrix.dtype == np.float32
    (tmp_path / "bad.jpg").write_text("text")
    done = cli("embed", tmp_path / "bad.jpg", photo_files[0], "--out", out, status=3)
    assert "bad.jpg (row 0 is zero): not an image" in done.stderr
    assert not np.load(out)[0].any()
    cli("embed", tmp_path / "bad.jpg", "--out", tmp_path / "none.npy", status=3)
    assert not (tmp_path / "none.npy").exists()
    assert "No such file or directory" in cli("embed", photo_files[0], "--out", "/nope/x.npy", status=1).stderr


def test_search(cli: Cli, digits: str) -> None:
    hits = cli.json("search", "-c", digits, "--id", "d3", "-k", "2", "--where", "label = '0'")[0]["hits"]
    assert [hit["label"] for hit in hits] == ["0", "0"]
    assert "d3" not in cli("search", "-c", digits, "--id", "d4", "-k", "1", "--where", "n > 20").stdout
    assert "give image files" in cli("search", "-c", digits, status=2).stderr
    assert "whole number" in cli("search", "-c", digits, "--id", "d3", "-k", "-1", status=1).stderr


def test_heads_and_classify(cli: Cli, digits: str, tmp_path: Path) -> None:
    head = cli.json("heads", "train", "h", "-c", digits, "--kind", "ncm", "--option", "center=false")
    assert head["kind"] == "ncm"
    assert head["options"] == {"center": False}
    assert "h" in cli("heads", "list", "-c", digits).stdout
    assert "warning: 36 of these items trained the head" in cli("heads", "eval", "h", "-c", digits).stderr
    images, _ = digit_images(13, classes=1)
    (tmp_path / "zero.png").write_bytes(images[12])
    answer = cli.json("classify", "-c", digits, "--head", "h", "zero.png", "--accept-all")
    said = answer[0]["prediction"]
    assert said["best"] == "0"
    assert (said["head_version"], said["fingerprint"]) == (1, head["fingerprint"])
    assert [neighbour["label"] for neighbour in said["neighbours"]] == ["0"]
    (tmp_path / "photo.jpg").write_bytes(photograph_jpegs()[0])
    done = cli("classify", "-c", digits, "--head", "h", "photo.jpg", "--neighbours", "2")
    assert "unknown (nearest" in done.stdout
    assert len(re.findall(r"d\d+: [012] \(\d\.\d\d\)", done.stdout)) == 2
    assert f"by h v1, space {head['fingerprint']}" in done.stderr
    cli("heads", "delete", "h", "-c", digits)
    assert "no head" in cli("classify", "-c", digits, "--head", "h", "zero.png", status=1).stderr.lower()


def test_collections(cli: Cli, digits: str, tmp_path: Path) -> None:
    assert digits in cli("collections", "list").stdout
    assert cli.json("collections", "info", digits)["collection"]["count"] == 36
    cli("collections", "export", digits, "--out", "all.npy", "--where", "label = '1'")
    assert np.load(tmp_path / "all.npy").shape[0] == 12
    assert "0 problems" in cli("collections", "fsck", digits).stderr
    assert "no collection" in cli("collections", "info", "nowhere", status=1).stderr.lower()
    cli("search", "-c", digits, "--id", "d1", "--where", "label = = 1", status=1)


def test_collections_delete_asks_first(cli: Cli, client: Client) -> None:
    client.create_collection("doomed", dim=2)
    cli("collections", "delete", "doomed", status=1)
    assert client.collection("doomed").count() == 0
    cli("collections", "delete", "doomed", "--yes")
    assert "doomed" not in [info.name for info in client.collections()]


def test_no_server_is_one_line(tmp_path: Path) -> None:
    lost = Cli("127.0.0.1:9", tmp_path)
    assert "likewise serve" in lost("info", status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["--backbone", "resnet19"], 1, "unknown backbone 'resnet19'"),
        (["--host", "0.0.0.0"], 1, "--insecure"),  # noqa: S104  # refused
        (["--device", "cuda:7"], 1, "CUDA devices"),
        (["--precision", "fp8"], 2, "setting precision"),
        (["--set", "nonsense=1"], 2, "unknown setting nonsense"),
        (["--set", "max_batch=none"], 2, "setting max_batch"),
        (["--set", "data=/dev/null/x"], 1, "directory"),
    ],
)
def test_serve_refuses_what_it_cannot_do(tmp_path: Path, arguments: list[str], status: int, hint: str) -> None:
    cli = Cli("", tmp_path)
    assert hint in cli("serve", "--data", tmp_path / "d", "--port", "0", *arguments, status=status).stderr


def test_serve_refuses_a_port_and_a_directory_in_use(server: ServerProcess, tmp_path: Path) -> None:
    cli = Cli("", tmp_path)
    assert "cannot listen" in cli("serve", "--data", tmp_path / "d", "--port", server.port, status=1).stderr
    done = cli("serve", "--data", server.data, "--port", "0", status=1)
    assert str(server.process.pid) in done.stderr


def test_settings_come_from_flags_then_environment_then_file(tmp_path: Path) -> None:
    (tmp_path / "likewise.toml").write_text('max_items = 7\nmax_k = 8\nbackbone = ["likewise-tiny"]\n')
    environment = {"LIKEWISE_MAX_K": "9", "LIKEWISE_STREAM_WINDOW": "5"}
    with (
        start_server(tmp_path / "data", "--set", "stream_window=3", env=environment) as running,
        Client(running.address) as client,
    ):
        limits = client.info().limits
        assert (limits.max_items, limits.max_k, limits.stream_window) == (7, 9, 3)
        assert len(client.embed(photograph_jpegs()).vectors) == 16, "the client cuts its requests to the limits"


def test_metrics_can_be_scraped(tmp_path: Path) -> None:
    import urllib.request  # noqa: PLC0415

    with start_server(tmp_path / "data", "--metrics-port", "0") as running, Client(running.address) as client:
        client.embed(photograph_jpegs())
        line = next(text for text in running.log.read_text().splitlines() if '"event": "metrics"' in text)
        with urllib.request.urlopen(f"http://127.0.0.1:{json.loads(line)['port']}/metrics") as reply:
            text = reply.read().decode()
    assert 'likewise_images_total{backbone="likewise-tiny"} 16.0' in text
    assert 'likewise_calls_total{code="OK",method="EmbeddingService/Embed"} 1.0' in text
