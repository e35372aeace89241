"""What the pipeline tells whoever counts: see metrics.py for what becomes of it."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from likewise_server.pipeline.queues import Idle, Reason

Stage: TypeAlias = Literal["decode_wait", "decode", "device_wait"]


class Observer(Protocol):
    """Called from the pipeline's threads; must be quick and must not raise."""

    def on_stage(self, stage: Stage, seconds: float) -> None:
        """Note what one image spent waiting for the decoder, in it, or waiting for a device."""

    def on_batch(self, backbone: str, device: str, images: int, seconds: float, reason: Reason) -> None:
        """Note one forward pass and why its batch was closed."""

    def on_idle(self, device: str, why: Idle, seconds: float) -> None:
        """Note that a device had nothing to do."""

    def on_lookup(self, *, hit: bool) -> None:
        """Note that a picture was looked up in the cache."""


class Silent:
    """Counts nothing."""

    def on_stage(self, stage: Stage, seconds: float) -> None:
        """Ignore."""

    def on_batch(self, backbone: str, device: str, images: int, seconds: float, reason: Reason) -> None:
        """Ignore."""

    def on_idle(self, device: str, why: Idle, seconds: float) -> None:
        """Ignore."""

    def on_lookup(self, *, hit: bool) -> None:
        """Ignore."""
