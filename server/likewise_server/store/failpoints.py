"""Places where a test can have the process killed, as a power cut would, to see what a restart makes of it.

`LIKEWISE_FAILPOINTS="segment.after_rename,writer.after_commit:3"` kills at the first and the third pass.
Without that variable a failpoint is one cached look-up.
"""

from __future__ import annotations

import functools
import os
import signal


@functools.cache
def _armed() -> dict[str, int]:
    armed = {}
    for entry in filter(None, os.environ.get("LIKEWISE_FAILPOINTS", "").split(",")):
        name, _, passes = entry.partition(":")
        armed[name] = int(passes or 1)
    return armed


def hit(name: str) -> None:
    """Kill this process, without clean-up, if the failpoint is armed and its passes are used up."""
    armed = _armed()
    if name in armed:
        armed[name] -= 1
        if armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
