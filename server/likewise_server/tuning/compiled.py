"""A backbone's compiled code: from the artifacts below the data directory, or compiled into them now."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from likewise_server.backbones import artifacts, compiling
from likewise_server.backbones.artifacts import Facts
from likewise_server.backbones.backbone import Backbone


class NotCompiledError(RuntimeError):
    """There is no compiled code, and the message says why."""


def find(backbone: Backbone, folder: Path) -> tuple[Path, Facts] | None:
    """Return the code kept in `folder` for the backbone's default feature, and its facts; None if there is none."""
    return artifacts.find(folder, artifacts.key_of(backbone, backbone.ref(), backbone.threads))


def make(backbone: Backbone, folder: Path, weights_dir: Path | None, max_batch: int) -> tuple[Path, Facts]:
    """Compile as a server would, in a process of its own, keep it in `folder`, and return it.

    It takes a minute or more. Raises NotCompiledError.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotCompiledError(f"there is no C++ compiler {compiler!r} here: install one, or name yours in CXX")
    task = compiling.Task(
        name=backbone.name,
        ref=str(backbone.ref()),
        weights_dir=weights_dir,
        device=str(backbone.replicas[0].device),
        precision=backbone.precision,
        decoding=backbone.decoding,
        folder=folder.resolve(),
        max_batch=max_batch,
        threads=backbone.threads,
    )
    _run(task)
    found = find(backbone, folder)
    if found is None:
        raise NotCompiledError(f"the compiler kept nothing in {folder}: can it be written to?")
    return found


def use(backbone: Backbone, code: Path, best_batch: int) -> None:
    """From now on run the default feature by `code`, in batches of up to `best_batch`."""
    forwards = [compiling.load(code, replica.device) for replica in backbone.replicas]
    backbone.swap(backbone.ref(), forwards, best_batch)


def drop(backbone: Backbone) -> None:
    """Run eagerly again."""
    for replica in backbone.replicas:
        replica.compiled.clear()


def _run(task: compiling.Task) -> None:
    with tempfile.TemporaryDirectory(prefix="likewise-compile-") as scratch, tempfile.TemporaryFile() as words:
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": scratch}
        process = subprocess.Popen(
            [sys.executable, "-m", "likewise_server.backbones.compiling"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=words,
            start_new_session=True,
            env=environment,
        )
        try:
            if process.stdin is not None:
                # The pipe stays open: its end tells the compiler that nobody waits any more.
                process.stdin.write(task.model_dump_json().encode() + b"\n")
                process.stdin.flush()
            status = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if status:
            words.seek(0)
            raise NotCompiledError(_last_line(words.read().decode(errors="replace")) or f"it ended with {status}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
