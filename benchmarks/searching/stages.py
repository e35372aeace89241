"""Stages whose outcome is kept on disk, processes that are watched while they build, and turns taken in rounds."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from common.processes import Child, anonymous_bytes, peak_rss_bytes, rss_bytes, tree, worker
from searching.plan import Plan

Say = Callable[[str], None]
Facts = dict[str, Any]
Readings = dict[str, list[Facts]]
EVERY_S = 0.2
# As `likewise serve` sets it: OpenMP's threads sleep while they wait. The same for all; the environment decides.
ENVIRONMENT = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def kept(path: Path, make: Callable[[], Facts]) -> Facts:
    """Return what `make` gave in an earlier run, or make it and keep it. For what no ratio is made of."""
    if not path.exists():
        made = make()
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n")
        partial.rename(path)
    facts: Facts = json.loads(path.read_text())
    return facts


class Memory:
    """Watches the memory of a process and of those that it starts: a store may build in a process of its own."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ended = pid, threading.Event()
        self._all = self._own = self._child = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def facts(self) -> Facts:
        """Return the peaks so far; the process must still be there.

        `peak_bytes` counts mapped files, once for each process that maps them; `peak_own_bytes` does not;
        `peak_child_bytes` is that of the largest of the processes that were started.
        """
        peak = max(self._all, peak_rss_bytes(self._pid))
        return {"peak_bytes": peak, "peak_own_bytes": self._own, "peak_child_bytes": self._child}

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            total = own = 0
            for pid in tree(self._pid):
                with contextlib.suppress(OSError, StopIteration, IndexError):  # it may end while we look
                    total += rss_bytes(pid)
                    own += anonymous_bytes(pid)
                    if pid != self._pid:
                        self._child = max(self._child, peak_rss_bytes(pid))
            self._all, self._own = max(self._all, total), max(self._own, own)


def start(plan: Plan, module: str, *arguments: str, **options: Any) -> Child:
    """Start a worker of this package with a plan; its log is named after its arguments."""
    name = "-".join([module, *(Path(each).name.replace(",", "_") for each in arguments)])
    log = plan.folder / f"{name}.log"
    return worker(f"searching.{module}", plan.json(), *arguments, log=log, environment=ENVIRONMENT, **options)


def built(plan: Plan, module: str, *arguments: str, **options: Any) -> Facts:
    """Let a worker build and end; return what it says and what memory it took."""
    child = start(plan, module, *arguments, "build", **options)
    with child, Memory(child.process.pid) as memory:
        answer = child.ask("build", timeout=plan.patience)
        return {**child.hello, **answer, **memory.facts()}


class Seat:
    """A contestant of the rounds: a worker that only runs while it is asked, and the form in which it is asked."""

    def __init__(self, child: Child, prefix: str = "") -> None:
        self.child, self._prefix = child, prefix

    def take(self, what: str, **arguments: Any) -> Facts:
        """Let the worker do one job with nobody beside it."""
        self.child.resume()
        try:
            return self.child.ask(self._prefix + what, **arguments)
        finally:
            self.child.pause()


def rounds(plan: Plan, turns: Mapping[str, Callable[[], Facts]], say: Say) -> Readings:
    """Give everything a turn in every round, so that what else the machine does falls on all alike."""
    readings: Readings = {name: [] for name in turns}
    for number in range(plan.rounds):
        for name, turn in turns.items():
            say(f"round {number + 1} of {plan.rounds}: {name}")
            readings[name].append(turn())
    return readings


def median(readings: Readings, name: str, key: str) -> float | None:
    """Return the median over the rounds of a figure, None where it was not measured."""
    values = [reading[key] for reading in readings.get(name, [])]
    return float(statistics.median(values)) if values else None
