"""Serving while compiling: what was compiled before is used at once, and whatever goes wrong, eager mode goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_server.app import Running
from likewise_server.backbones import artifacts, compiler_process, compiling, registry
from likewise_server.backbones.base import BackboneRef
from likewise_server.engine import compiler
from support.compiling import Compiled, needs_compiler
from support.fakes import until
from support.pictures import photograph_jpegs
from support.server import serving
from support.waiting import PATIENCE_S

MEASURED = {"cosine": 1.0, "best_batch": 8, "images_per_s": {"8": 1.0}, "seconds": 1.0}


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as records:
        yield records


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in the place of the compiler's process."""
    program = folder / "compiler.sh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


def failing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(folder, monkeypatch, "echo some lines >&2; echo 'the compiler broke' >&2; exit 1")


async def execution(running: Running) -> str:
    """Ask as a client would."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub: Any = EmbeddingServiceStub(channel)
        reply = await stub.ListBackbones(epb.ListBackbonesRequest(served_only=True), timeout=30)
    found: str = reply.backbones[0].execution
    return found


async def vectors(running: Running, layer: str = "") -> Any:
    result = await running.engine.embedder.embed(photograph_jpegs(), BackboneRef("", layer))
    assert not result.errors
    return result.vectors


def least_cosine(a: Any, b: Any) -> float:
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def warnings(logged: list[Any]) -> list[str]:
    return [record["why"] for record in logged if record["event"] == "not compiled, staying eager"]


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Any:
    async def ask() -> Any:
        async with serving(tmp_path_factory.mktemp("eager")) as running:
            return await vectors(running)

    return asyncio.run(ask())


@needs_compiler
def test_a_server_told_to_compile_before_it_serves_does(compiled: Compiled) -> None:
    assert compiled.execution == "compiled"
    assert [path.name for path in compiled.folder.iterdir()] == [compiled.key]


@needs_compiler
@pytest.mark.parametrize("device", ["auto", "cpu"])
async def test_the_next_start_is_warm_and_answers_as_eager_mode_does(
    compiled: Compiled, eager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any], device: str
) -> None:
    failing(tmp_path, monkeypatch)  # no compiler is needed
    compiled.copied_to(tmp_path)
    async with serving(tmp_path, compile="before", device=device) as running:
        backbone = running.engine.embedder.backbones["likewise-tiny"]
        assert await execution(running) == "compiled"
        assert len(running.engine.batcher.devices) == len(registry.choose_devices(device))
        assert all(backbone.ref() in replica.compiled for replica in backbone.replicas)
        assert backbone.best_batch(backbone.ref()) in (1, 2), "as was measured"
        assert least_cosine(await vectors(running), eager) > 0.9999
        assert await execution(running) == "compiled"
    assert warnings(logged) == []
    assert [record["origin"] for record in logged if record["event"] == "compiled"] == ["disk"]


async def test_a_compiler_that_fails_leaves_the_server_in_eager_mode_and_is_told_once(
    eager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    failing(tmp_path, monkeypatch)
    async with serving(tmp_path, compile="before") as running:
        assert await execution(running) == "eager"
        np.testing.assert_allclose(await vectors(running), eager, rtol=1e-3, atol=1e-4)
        for _ in range(3):
            await running.engine.ready()
        assert await execution(running) == "eager"
    assert warnings(logged) == ["the compiler broke"]


async def test_a_compiler_that_keeps_nothing_is_told_of_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    stand_in(tmp_path, monkeypatch, "exit 0")
    async with serving(tmp_path, compile="before") as running:
        assert await execution(running) == "eager"
    [why] = warnings(logged)
    assert "kept nothing" in why


async def test_a_compiler_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    stand_in(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    monkeypatch.setattr(compiler_process, "LONGEST_S", 0.5)
    async with serving(tmp_path, compile="before") as running:
        assert await execution(running) == "eager"
    assert warnings(logged) == ["TimeoutError"]
    assert gone(int((tmp_path / "pid").read_text()))


@needs_compiler
async def test_damaged_code_is_never_run(
    compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    failing(tmp_path, monkeypatch)
    folder = compiled.copied_to(tmp_path)
    with (folder / compiled.key / "code").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    async with serving(tmp_path, compile="before") as running:
        assert await execution(running) == "eager"
    assert warnings(logged) == ["the compiler broke"], "it was to be compiled again"
    assert not (folder / compiled.key).exists()


async def test_a_file_that_is_no_code_leaves_the_server_in_eager_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    keep_stand_ins(monkeypatch)
    async with serving(tmp_path, compile="before") as running:
        assert await execution(running) == "eager"
        assert (await vectors(running)).any()
    [why] = warnings(logged)
    assert why.startswith("cannot load code")


def keep_stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of compiling, keep a file that is no code; return for what it was done."""
    asked: list[str] = []

    async def run(backbone: Any, ref: BackboneRef, _weights_dir: Path | None, folder: Path, _max_batch: int) -> None:
        asked.append(ref.layer)
        folder.parent.mkdir(exist_ok=True, parents=True)
        code = folder.parent / "built"
        code.write_bytes(b"no code")
        artifacts.keep(folder, artifacts.key_of(backbone, ref, backbone.threads), code, MEASURED)

    monkeypatch.setattr(compiler_process, "run", run)
    return asked


class EagerCode:
    """Loads, instead of code, the network itself, or a change to its vectors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.asked = keep_stand_ins(monkeypatch)
        self.images = 0
        self.features: list[Any] = []
        self._change = change
        monkeypatch.setattr(compiling, "load", lambda *_: self)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.images += len(pixels)
        changed: torch.Tensor = self._change(self.features[-1](pixels))
        return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.roll(1, dims=1),
        lambda x: x + x.std() * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)),
        lambda x: x * 0,
        lambda x: x * float("nan"),
        lambda x: x.flip(0),
    ],
    ids=["turned", "noisy", "zero", "not a number", "of other pictures"],
)
async def test_code_that_gives_other_vectors_is_refused(
    eager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any], change: Any
) -> None:
    code = EagerCode(monkeypatch, change)
    load_network(monkeypatch, code)
    async with serving(tmp_path, compile="before") as running:
        assert await execution(running) == "eager"
        proved = code.images
        assert proved > 1
        np.testing.assert_allclose(await vectors(running), eager, rtol=1e-3, atol=1e-4)
        assert code.images == proved, "it is never used"
    assert len(warnings(logged)) == 1


async def test_the_log_says_how_far_off_refused_code_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    load_network(monkeypatch, EagerCode(monkeypatch, lambda x: x.roll(1, dims=1)))
    async with serving(tmp_path, compile="before"):
        pass
    [why] = warnings(logged)
    assert "differ from eager ones: cosine" in why


def load_network(monkeypatch: pytest.MonkeyPatch, code: EagerCode) -> None:
    """Let `code` know what it stands in for."""
    one = compiler.Compiler._one

    async def watched(self: Any, backbone: Any, ref: BackboneRef) -> None:
        code.features.append(backbone.replicas[0].feature(ref))
        await one(self, backbone, ref)

    monkeypatch.setattr(compiler.Compiler, "_one", watched)


async def test_a_layer_that_is_used_much_is_compiled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    code = EagerCode(monkeypatch, lambda x: x)
    load_network(monkeypatch, code)
    monkeypatch.setattr(compiler, "WORTHWHILE", 40)
    # One device: the stand-in for code is one network, which two threads must not run at once.
    async with serving(tmp_path, device="cpu:0", compile="before", cache_bytes=0) as running:
        embedder = running.engine.embedder
        assert embedder.execution(embedder.backbones["likewise-tiny"].ref()) == "compiled"
        assert code.asked == [""]
        layer = embedder.backbones["likewise-tiny"].layers[1]
        ref = BackboneRef("likewise-tiny", layer)
        before = await vectors(running, layer)
        await vectors(running, layer)
        assert embedder.execution(ref) == "eager"
        assert code.asked == [""], "32 images are not worth it"
        await vectors(running, layer)
        await until(lambda: embedder.execution(ref) == "compiled")
        used = code.images
        np.testing.assert_allclose(await vectors(running, layer), before, rtol=1e-3, atol=1e-4)
        assert code.images == used + 16
        for _ in range(4):
            await vectors(running, layer)
        assert code.asked == ["", layer], "once"
    assert warnings(logged) == []


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


async def test_the_server_answers_while_it_compiles_and_ends_the_compiler_with_itself(
    eager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, f"sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; wait")
    async with serving(tmp_path, compile="behind") as running:
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        assert await execution(running) == "compiling"
        np.testing.assert_allclose(await vectors(running), eager, rtol=1e-3, atol=1e-4)
        processes = [int((tmp_path / name).read_text()) for name in ("pid", "child")]
        assert not any(map(gone, processes))
    await until(lambda: all(map(gone, processes)))


def test_the_compiler_and_its_children_end_when_the_server_is_killed(tmp_path: Path) -> None:
    # The real process, but for the work that it does: that sleeps, as a C++ compiler would run, in a child.
    code = """
import subprocess
from likewise_server.backbones import compiling
def work(*_):
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    child.wait()
compiling.registry.load = lambda *_, **__: None
compiling.compile_feature = work
compiling.main()
"""
    task = compiling.Task(
        name="likewise-tiny",
        ref="likewise-tiny",
        weights_dir=None,
        device="cpu",
        precision="fp32",
        decoding="scaled",
        folder=tmp_path,
        max_batch=2,
        threads=1,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(task.model_dump_json() + "\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            assert process.poll() is None, "it works as long as the pipe is open"
            assert not gone(child)
            process.stdin.close()  # as the kernel does when the server ends, however it ends
            assert process.wait(PATIENCE_S) == -signal.SIGKILL
            end = time.monotonic() + PATIENCE_S
            while not gone(child) and not zombie(child):
                assert time.monotonic() < end, "the child lives on"
                time.sleep(0.01)
        finally:
            process.kill()


def zombie(process: int) -> bool:
    """Return whether a process has ended that nobody has asked for, as where there is no init."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
