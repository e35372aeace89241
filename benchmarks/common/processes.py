"""Processes of their own for what is measured: started, asked, paused while others are measured, ended, weighed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent
PROC = Path("/proc")
START_S = 600.0  # on a busy machine, compiling included
STOP_S = 30.0
LINES = 15  # of a log, where a process failed


class Child:
    """A process in a group of its own; its stderr goes to `log`, and its stdout too unless it `talks` to us."""

    def __init__(
        self, command: Sequence[str], log: Path, *, talks: bool = True, environment: Mapping[str, str] | None = None
    ) -> None:
        paths = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log = log
        self.hello: dict[str, Any] = {}  # a worker's first line
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if talks else errors,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def line(self, timeout: float = START_S) -> dict[str, Any]:
        """Return the next line of JSON that the process prints. Raises RuntimeError with the end of its log."""
        assert self.process.stdout is not None  # noqa: S101  # it is a pipe
        readable, _, _ = select.select([self.process.stdout], [], [], timeout)
        text = self.process.stdout.readline() if readable else ""
        if not text:
            self.stop()
            why = "ended" if readable else f"said nothing for {timeout:.0f} s"
            raise RuntimeError(f"a process {why}; the end of its log:\n{self.log_end()}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def ask(self, what: str, *, timeout: float = START_S, **arguments: Any) -> dict[str, Any]:
        """Send a worker one request and return its answer."""
        assert self.process.stdin is not None  # noqa: S101  # it is a pipe
        self.process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self.process.stdin.flush()
        return self.line(timeout)

    def log_end(self) -> str:
        """Return the last lines of what the process wrote to stderr."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LINES:]) or "(nothing)"

    def pause(self) -> None:
        """Take the processor from the whole group: some servers poll even when nobody asks them anything."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Give it back."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End the group, by force if it takes too long."""
        for number, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            try:
                os.killpg(self.process.pid, number)
                os.killpg(self.process.pid, signal.SIGCONT)  # what is paused cannot end
            except ProcessLookupError:
                break
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def worker(
    module: str,
    *arguments: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    python: str | Path = sys.executable,
) -> Child:
    """Start `python -m <module>`, which answers requests line by line, and wait until it is ready."""
    child = Child([str(python), "-m", module, *arguments], log, environment=environment)
    child.hello = child.line()
    return child


def rss_bytes(pid: int) -> int:
    """Return the resident memory of one process. Needs /proc, as Linux has it."""
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes(pid: int) -> int:
    """Return the largest resident memory that one process has had. Needs /proc."""
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def anonymous_bytes(pid: int) -> int:
    """Return the resident memory of one process that is no file's: what others cannot have while it runs."""
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    wanted = [pid]
    while wanted:
        yield (this := wanted.pop())
        with contextlib.suppress(OSError):  # it may end while we look
            for task in (PROC / str(this) / "task").iterdir():
                wanted += map(int, (task / "children").read_text().split())


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its descendants, ended ones included, have used."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):  # it may end while we look
            fields = (PROC / str(each) / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # its own, and those of the ended children it waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_until_idle(pid: int, *, patience: float, quiet_s: float = 3.0, share: float = 0.05) -> bool:
    """Wait until a process uses less than `share` of one core for `quiet_s`; return whether it came to that.

    What a server still prepares in the background, such as compiling, is work that the benchmark must not disturb
    and must not be disturbed by. Without /proc there is no telling, and the answer is False after `quiet_s`.
    """
    if not (PROC / str(pid) / "stat").exists():
        time.sleep(quiet_s)
        return False
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        before = cpu_seconds(pid)
        time.sleep(quiet_s)
        if 0 <= cpu_seconds(pid) - before < share * quiet_s:  # less than nothing: a child has just ended
            return True
    return False
