"""Places where a test can have the process killed, as a power cut would, to see what a restart makes of it.

`LIKEWISE_FAILPOINTS="segment.after_rename,writer.after_commit:3"` kills at the first and the third pass.
Without that variable, which is no setting and which no flag or file sets, a failpoint is one cached look-up.
"""

from __future__ import annotations

import functools
import os
import signal

SWITCH = "LIKEWISE_FAILPOINTS"
NAMES = frozenset(
    {
        *(f"writer.{step}" for step in ("before_commit", "after_commit", "after_apply")),
        *(f"segment.after_{step}" for step in ("build", "write", "fsync", "rename", "folder_fsync", "row", "collect")),
        "quarantine.after_rename",
        *(f"schema.{step}" for step in ("before_commit", "after_commit")),
        *(f"backup.after_{step}" for step in ("create", "rows", "fsync", "rename")),
        *(f"restore.{step}" for step in ("before_commit", "after_commit")),
    }
)
"""All of them; the tests kill at each."""


@functools.cache
def _armed() -> dict[str, int]:
    armed = {}
    for entry in filter(None, os.environ.get(SWITCH, "").split(",")):
        name, _, passes = entry.partition(":")
        if name not in NAMES:
            raise ValueError(f"{SWITCH}: there is no failpoint {name!r}")
        armed[name] = int(passes or 1)
    return armed


def hit(name: str) -> None:
    """Kill this process, without clean-up, if the failpoint is armed and its passes are used up."""
    armed = _armed()
    if name in armed:
        armed[name] -= 1
        if armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
