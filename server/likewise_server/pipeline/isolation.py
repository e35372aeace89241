"""Decoding in processes of their own: what a picture does to its decoder, it does to no one else.

Each worker has a block of memory that this process has as well: the encoded image is put there, and its pixels are
found there. A worker that crashes, or takes too long, costs the image that it had, and another one is started.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import structlog

from likewise_server.backbones.replica import Pixels
from likewise_server.errors import InvalidArgument, LikewiseError, OutOfRange, Unavailable
from likewise_server.images import LOOKS, Decoding, ImageLimits, Preprocessing, Views
from likewise_server.pipeline.decoders import CpuDecode

log = structlog.get_logger()

COMMAND: tuple[str, ...] = (sys.executable, "-m", "likewise_server.pipeline.isolated")
ROOM = (
    64 * 2**20
)  # bytes of a block at least, for the pixels of all looks at an image; what is not used takes no memory
START_S = 120.0  # for a worker to import torch, on a machine that is busy
CRASH_S = 2.0  # for one that has crashed to be gone, with the status that says how
LINE = 65536  # bytes of an answer that are read at a time
REFUSALS: dict[str, type[LikewiseError]] = {each.__name__: each for each in (InvalidArgument, OutOfRange)}


class IsolatedDecode:
    """`CpuDecode` in so many processes, for as many threads. They end with this process, however it ends."""

    at_once = 1

    def __init__(self, limits: ImageLimits, decoding: Decoding, *, workers: int, timeout_s: float) -> None:
        self._limits, self._decoding, self._timeout_s = limits, decoding, timeout_s
        # On the right those that worked last, on the left those that have yet to start.
        self._idle = deque(_Worker(limits, decoding) for _ in range(workers))
        self._free = threading.Semaphore(workers)

    def __call__(self, images: Sequence[bytes], how: Preprocessing, views: Views) -> list[Pixels | LikewiseError]:
        """See Decode."""
        return [self._one(data, how, views) for data in images]

    def _one(self, data: bytes, how: Preprocessing, views: Views) -> Pixels | LikewiseError:
        if not 0 < len(data) <= self._limits.max_bytes:  # refused before it is decoded, and has no room there
            return CpuDecode(self._limits, self._decoding)([data], how, views)[0]
        with self._free:
            return self._by(self._idle.pop(), data, how, views)

    def _by(self, worker: _Worker, data: bytes, how: Preprocessing, views: Views) -> Pixels | LikewiseError:
        try:
            found = worker.decode(data, how, views, self._timeout_s)
        except (OSError, EOFError) as error:
            slow = isinstance(error, TimeoutError)
            ended = worker.end(0.0 if slow else CRASH_S)
            self._idle.appendleft(self._replaced(worker))
            log.warning(
                "a decoding process was lost",
                pid=worker.pid,
                started=worker.started,
                ended=ended,
                slow=slow,
                bytes=len(data),
            )
            return _lost(worker, ended, self._timeout_s if slow else None)
        self._idle.append(worker)
        return found

    def _replaced(self, worker: _Worker) -> _Worker:
        try:
            return _Worker(self._limits, self._decoding)
        except OSError:
            log.exception("no decoding process can be started")
            return worker  # whose turn comes again: it fails at once, and another one is tried

    def close(self) -> None:
        """End the processes. Nobody may be calling."""
        while self._idle:
            self._idle.pop().end(0.0)


class _Worker:
    """A process that decodes one image at a time."""

    def __init__(self, limits: ImageLimits, decoding: Decoding) -> None:
        size = max(limits.max_bytes, ROOM)
        fd = _anonymous()
        os.ftruncate(fd, size)
        self._memory = mmap.mmap(fd, size)
        self._socket, theirs = socket.socketpair()
        plan = {"limits": asdict(limits), "decoding": decoding, "size": size, "memory": fd, "socket": theirs.fileno()}
        self._process = subprocess.Popen(  # noqa: S603  # a program of ours
            [*COMMAND, json.dumps(plan)],
            stdin=subprocess.PIPE,  # closes when this process ends, and with it that one: see child.py
            pass_fds=(fd, theirs.fileno()),
            start_new_session=True,
        )
        os.close(fd)
        theirs.close()
        self.started = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, data: bytes, how: Preprocessing, views: Views, timeout_s: float) -> Pixels | LikewiseError:
        """Return the pixels, or what is wrong. Raises OSError, TimeoutError or EOFError where the process is lost."""
        if not self.started:
            self._answer(START_S)
            self.started = True
        self._socket.settimeout(timeout_s)
        self._memory[: len(data)] = data
        asked = {"bytes": len(data), "how": asdict(how), "views": views}
        self._socket.sendall(json.dumps(asked).encode() + b"\n")
        answer = self._answer(timeout_s)
        if "error" in answer:
            return REFUSALS[answer["error"]](answer["message"])
        # What a process sends that has read a hostile picture is not taken on trust.
        shape = (LOOKS[views],) * bool(views) + (how.crop, how.crop, 3)
        return np.frombuffer(self._memory, np.uint8, count=math.prod(shape)).reshape(shape).copy()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n"):
            self._socket.settimeout(max(1e-3, end - time.monotonic()))
            part = self._socket.recv(LINE)
            if not part:
                raise EOFError
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self, wait_s: float) -> str:
        """Kill the process if it has not ended after so many seconds; return how it ended."""
        self._socket.close()
        try:
            status = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._memory.close()
        return signal.Signals(-status).name if status < 0 else f"status {status}"


def _anonymous() -> int:
    """Return a descriptor of a file that goes with its last user; not of /dev/shm, which is small in containers."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("likewise")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _lost(worker: _Worker, ended: str, timeout_s: float | None) -> LikewiseError:
    if not worker.started:  # no picture is to blame for that
        return Unavailable("no decoding process could be started: send the image again; see the server's log")
    if timeout_s is not None:
        return InvalidArgument(f"decoding this image took over {timeout_s:g} s: shrink it, or save it anew")
    return InvalidArgument(f"this image crashed its decoder ({ended}): save it anew, or in another format")
