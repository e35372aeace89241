"""Starts builds and follows them: small ones here, large ones in a process of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

from likewise_server.errors import Unavailable
from likewise_server.store import building
from likewise_server.store.building import Said, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from likewise_server.store.policy import Plan
    from likewise_server.store.schema import ReadPool
    from likewise_server.store.segments import Written


class Builder:
    """Builds one segment at a time for each caller; `progress` tells how far a collection's is."""

    def __init__(self, data: Path, reads: ReadPool) -> None:
        self._data = data.resolve()
        self._reads = reads
        self._lock = threading.Lock()
        self._processes: dict[subprocess.Popen[str], int] = {}  # to collections
        self._cancelled: set[subprocess.Popen[str]] = set()
        self._closing = False
        self._said: dict[int, Said] = {}

    def progress(self, collection_id: int) -> Said:
        """Return the step of a collection's build and how much of it is done; an empty step where none is under way."""
        return self._said.get(collection_id, Said())

    def build(self, collection_id: int, plan: Plan, target: float, queries: list[list[float]]) -> Written:
        """Write a segment. Raises NotFound, OSError, RuntimeError, and Unavailable when closing."""
        task = Task(
            data=self._data,
            collection_id=collection_id,
            after_vid=plan.after_vid,
            factory=plan.factory,
            target=target,
            threads=max(1, (os.cpu_count() or 1) // 2),
            queries=queries,
        )
        self._said[collection_id] = Said(step="starting")
        try:
            if plan.apart:
                return self._apart(task)
            with self._reads.transaction() as db:
                return building.build(db, task, lambda step, progress: self._say(task, step, progress))
        finally:
            self._said.pop(collection_id, None)

    def _say(self, task: Task, step: str, progress: float) -> None:
        self._said[task.collection_id] = Said(step=step, progress=progress)

    def _apart(self, task: Task) -> Written:
        with tempfile.TemporaryFile("w+") as words:
            with self._lock:
                if self._closing:
                    raise Unavailable("The store is closing.")
                process = subprocess.Popen(  # noqa: S603  # this very program
                    [sys.executable, "-m", building.__name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    text=True,
                    start_new_session=True,
                )
                self._processes[process] = task.collection_id
            try:
                return self._followed(process, task, words)
            finally:
                self._kill(process)
                self._processes.pop(process)
                self._cancelled.discard(process)

    def _followed(self, process: subprocess.Popen[str], task: Task, words: object) -> Written:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes to the builder")
        with contextlib.suppress(BrokenPipeError):  # it ended at once, and has said why
            # The pipe stays open: its end tells the builder that this process has gone.
            process.stdin.write(task.model_dump_json() + "\n")
            process.stdin.flush()
        for line in process.stdout:
            said = Said.model_validate_json(line)
            if said.written is not None:
                return said.written
            self._said[task.collection_id] = said
        code = process.wait()
        words.seek(0)  # type: ignore[attr-defined]
        lines = [line.strip() for line in words if line.strip()]  # type: ignore[attr-defined]
        if self._closing or process in self._cancelled:
            raise Unavailable("The build was given up.")
        raise RuntimeError(f"the builder ended with {code}: {lines[-1] if lines else 'it said nothing'}")

    def _kill(self, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def cancel(self, collection_id: int) -> None:
        """Give up what is being built of a collection in a process of its own; `build` raises Unavailable."""
        self._end(lambda of: of == collection_id)

    def close(self) -> None:
        """Give up what is being built; nothing that counts is lost."""
        with self._lock:
            self._closing = True
        self._end(lambda _: True)

    def _end(self, chosen: Callable[[int], bool]) -> None:
        with self._lock:
            processes = [process for process, of in self._processes.items() if chosen(of)]
            self._cancelled.update(processes)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
