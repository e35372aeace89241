"""A backbone's compiled code: from the artifacts below the data directory, or compiled into them now."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from likewise_server.backbones import artifacts, compiler_process, compiling
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
    try:
        asyncio.run(compiler_process.run(backbone, backbone.ref(), weights_dir, folder, max_batch))
    except (RuntimeError, TimeoutError) as error:
        raise NotCompiledError(str(error) or "it took too long") from error
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
