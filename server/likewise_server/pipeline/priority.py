"""Let the event loop go first: a message that waits for the processor makes everybody behind it wait."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

NICENESS = 5


def yield_to_messages() -> None:
    """Lower the calling thread's priority, where the system has one for each thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not allowed here: all threads are equal then
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
