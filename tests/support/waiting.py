"""Waiting for what other threads and processes bring about."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 30.0  # how long anything is waited for before a test fails


def until(condition: Callable[[], object], why: str = "waited in vain", *, within_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds; fail, saying why, if it does not in time."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, why
        time.sleep(0.01)
