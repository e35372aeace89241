"""The compiler's process: started in a group of its own, handed its task, and ended with whoever waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from likewise_server.backbones import compiling
from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef

LONGEST_S = 1800.0  # that a compiler may take


async def run(backbone: Backbone, ref: BackboneRef, weights_dir: Path | None, folder: Path, max_batch: int) -> None:
    """Compile a feature into the artifacts in `folder`. A minute or more; cancelled, it ends the compiler.

    Raises RuntimeError with the compiler's last words, and TimeoutError.
    """
    task = compiling.Task(
        name=backbone.name,
        ref=str(ref),
        weights_dir=weights_dir,
        device=str(backbone.replicas[0].device),
        precision=backbone.precision,
        decoding=backbone.decoding,
        folder=folder,
        max_batch=max_batch,
        threads=backbone.threads,
    )
    with tempfile.TemporaryDirectory(prefix="likewise-compile-") as scratch:
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": scratch}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "likewise_server.backbones.compiling",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        try:
            async with asyncio.timeout(LONGEST_S):
                await _finished(process, task.model_dump_json().encode() + b"\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _finished(process: asyncio.subprocess.Process, task: bytes) -> None:
    if process.stdin is None or process.stderr is None:
        raise RuntimeError("no pipes to the compiler")
    # The pipe stays open: its end tells the compiler that nobody waits any more.
    process.stdin.write(task)
    words = await process.stderr.read()
    if await process.wait():
        raise RuntimeError(last_line(words.decode(errors="replace")) or f"it ended with {process.returncode}")


def last_line(text: str) -> str:
    """Return the last line that is not empty, of 300 characters at most."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
