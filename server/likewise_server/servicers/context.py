"""What servicers need of a call's context."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def deadline_of(context: Context) -> float | None:
    """Return the caller's deadline in time.monotonic() seconds, None without one."""
    remaining: float | None = context.time_remaining()  # None without a deadline, whatever the stubs say
    return None if remaining is None else time.monotonic() + remaining
