"""The audit log: who wrote what, and who was refused, as lines of JSON. No secrets, no pictures, no vectors."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

FILE = "audit.jsonl"
PERIOD_S = 0.5  # between two writes to the file
KEPT = 5  # full files beside the current one
MOST_WAITING = 20_000  # lines between two writes; what is over is counted only


class Audit:
    """Appends to `data`/audit.jsonl within a second, from one thread; at `max_bytes` a new file is begun.

    Files are readable by their owner only. `max_bytes` 0: nothing is written. `note` and `refuse` never wait for the
    disk; where it cannot be written to, the server goes on, the log says so, and the next line tells how many are lost.
    """

    def __init__(self, data: Path, max_bytes: int) -> None:
        self._path = data / FILE
        self._max_bytes = max_bytes
        self._lines: list[tuple[float, dict[str, Any]]] = []
        self._refused: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self._lost = 0
        self._failing = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        if max_bytes:
            self._thread.start()

    def note(self, **facts: Any) -> None:
        """Write a line with these facts and the time."""
        if not self._max_bytes:
            return
        with self._lock:
            if len(self._lines) < MOST_WAITING:
                self._lines.append((time.time(), facts))
            else:
                self._lost += 1

    def refuse(self, **facts: Any) -> None:
        """Write a line for a refusal. The same again before the next write is the same line, with `times`.

        So whoever hammers at the door fills neither the disk nor the log.
        """
        if not self._max_bytes:
            return
        key = tuple(facts.items())
        with self._lock:
            if key in self._refused or len(self._refused) < MOST_WAITING:
                self._refused[key] += 1
            else:
                self._lost += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._closing.set()
        if self._max_bytes:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(PERIOD_S):
            self._write()
        self._write()

    def _write(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            refused, self._refused = self._refused, Counter()
            lost, self._lost = self._lost, 0
        now = time.time()
        lines += [(now, {**dict(key), "times": times}) for key, times in refused.items()]
        if lost:
            lines.append((now, {"lost": lost}))
        if not lines:
            return
        try:
            self._append("".join(map(_line, lines)).encode())
        except OSError as error:
            with self._lock:
                self._lost += lost + len(lines)
            if not self._failing:
                log.warning("the audit log cannot be written", path=str(self._path), problem=error.strerror)
            self._failing = True
        else:
            self._failing = False

    def _append(self, text: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(text) > self._max_bytes:
            for number in range(KEPT - 1, 0, -1):
                older = self._aside(number)
                if older.exists():
                    older.replace(self._aside(number + 1))
            self._path.replace(self._aside(1))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(text)

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{FILE}.{number}")


def _line(entry: tuple[float, dict[str, Any]]) -> str:
    at, facts = entry
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": when, **facts}, ensure_ascii=False) + "\n"
