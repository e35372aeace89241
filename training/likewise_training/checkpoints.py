"""Files that are whole or absent, whenever the process dies, and the log that agrees with them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from likewise_server.errors import FailedPrecondition, InvalidArgument


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a file that gets the name `path` when all of it is on disk. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, state: Mapping[str, Any], decided_by: Mapping[str, Any]) -> None:
    """Write a checkpoint: tensors and plain values, and the settings that decide where it leads."""
    whole = {**state, "decided_by": dict(decided_by)}
    write_whole(path, lambda stream: torch.save(whole, stream))


def load(path: Path, decided_by: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `save` wrote, on the CPU, None where nothing was.

    Raises InvalidArgument if the run was begun with other settings, FailedPrecondition for a damaged file.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        before = state.pop("decided_by")
    except Exception as error:
        raise FailedPrecondition(
            f"{path} is no checkpoint of this program ({type(error).__name__}): delete the folder {path.parent}, "
            "or name another with --run"
        ) from error
    changed = sorted(key for key in {*before, *decided_by} if before.get(key) != decided_by.get(key))
    if changed:
        shown = "; ".join(f"{key} was {before.get(key)!r}, is {decided_by.get(key)!r}" for key in changed)
        raise InvalidArgument(
            f"the run in {path.parent} was begun otherwise ({shown}): repeat the command it was begun with, or name "
            "another folder with --run"
        )
    return state


def trim(path: Path, step: int) -> None:
    """Drop the rows of a log, whose first column is `step`, after that step: they will be written again."""
    if not path.exists():
        return
    with path.open(newline="") as stream:
        head, *rows = list(csv.reader(stream)) or [[]]
    kept = [row for row in rows if row and row[0].isdecimal() and int(row[0]) <= step]
    text = "".join(",".join(row) + "\n" for row in [head, *kept] if row)
    write_whole(path, lambda stream: stream.write(text.encode()))
