"""One process per data directory, by a lock that the kernel releases however the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from likewise_server.errors import FailedPrecondition

if TYPE_CHECKING:
    from pathlib import Path


class DirectoryLock:
    """Holds `path` for this process until `release`; raises FailedPrecondition if it is taken."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 512, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise FailedPrecondition(
                f"The data directory {path.parent} is in use by process {holder}. "
                "Stop that server or choose another directory."
            ) from None
        with suppress(OSError):  # on a full disk the lock holds as well, only without a name
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
