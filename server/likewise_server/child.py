"""What a process does that works for the server: it never outlives it."""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """End this process and its children when the pipe on standard input closes, as it does however the server ends.

    For a process that was started in a session of its own.
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)
