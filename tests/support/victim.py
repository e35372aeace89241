"""Processes in which a store lives and comes to grief.

`python -m support.victim FOLDER SEED STEPS TROUBLE…` lives once with each trouble, in FOLDER/0, FOLDER/1, …: after each
step it appends to FOLDER/0.acks "+", or "-" where that raised a coded error, or "?" where the error says that nobody
knows whether the step was done. Which error, stands on standard error. A TROUBLE is `none`, `kill=STEP/FAILPOINT`,
which arms the failpoint before that step, or `fail=` and what `disk.c` takes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from likewise_server.errors import LikewiseError, Unavailable
from likewise_server.store import Store, failpoints, open_store, schema
from support.lives import OUTSIDE, Hand, script

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Life:
    """What became of one: how the process ended, what was acknowledged, and where the data is."""

    status: int
    acks: str
    data: Path


def lives(
    folder: Path, seed: int, steps: int, troubles: Sequence[str], **environment: str
) -> tuple[list[Life], list[str]]:
    """Run lives in processes of their own; return what became of each, and the lines that they said."""
    command = [sys.executable, "-m", "support.victim", str(folder), str(seed), str(steps), *troubles]
    known = {key: value for key, value in os.environ.items() if key != failpoints.SWITCH}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env={**known, "PYTHONPATH": str(TESTS), **threads, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = []
    for number, status in enumerate(map(int, done.stdout.split())):
        acks = folder / f"{number}.acks"
        found.append(Life(status, acks.read_text() if acks.exists() else "", folder / str(number)))
    return found, done.stderr.splitlines()


def _live(data: Path, seed: int, steps: int, trouble: str) -> None:
    kind, _, details = trouble.partition("=")
    at, _, failpoint = details.partition("/")
    if kind == "fail":
        ctypes.CDLL(None).disk_fail(details.encode())
    log = os.open(data.with_suffix(".acks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = _opened(data)
    for number, step in enumerate(script(seed, steps)):
        if kind == "kill" and number == int(at):
            os.environ[failpoints.SWITCH] = failpoint
            failpoints._armed.cache_clear()
        try:
            if step.op in OUTSIDE:
                store.close()
                try:
                    Hand(store, data).do(step)
                finally:
                    store = _opened(data)
            else:
                Hand(store, data).do(step)
        except LikewiseError as error:
            _say(f"{number} {step.op} {error.code.name} {error.message}")
            os.write(log, b"?" if isinstance(error, Unavailable) else b"-")
        else:
            os.write(log, b"+")
    store.close()


def _opened(data: Path) -> Store:
    """Open the store; where the disk does not let it, say why, and try again."""
    for _ in range(100):
        try:
            return open_store(data)
        except LikewiseError as error:
            _say(f"opening {error.code.name} {error.message}")
    raise RuntimeError("the store does not open")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(folder: str, seed: str, steps: str, *troubles: str) -> None:
    """Live with each trouble; print how each process ended."""
    schema.WAL_BYTES = 20 * schema.PAGE_BYTES  # so that the log is copied into the database often
    for number, trouble in enumerate(troubles):
        child = os.fork()  # nothing here has threads yet, and the imports take longer than a life
        if not child:
            status = 1
            try:
                _live(Path(folder) / str(number), int(seed), int(steps), trouble)
                status = 0
            finally:
                os._exit(status)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
