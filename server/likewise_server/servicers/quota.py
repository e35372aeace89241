"""Quotas: token buckets, one for requests and one for bytes of each token. Used on the event loop only."""

from __future__ import annotations

import time

from likewise_server.tokens import Token


class Bucket:
    """Fills at `rate` a second, up to a second's worth (at least 1), and may be drawn below empty by one message.

    A message larger than the bucket passes when the bucket is full; the next one waits until that is paid back.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._most = max(rate, 1.0)
        self._level = self._most
        self._at = time.monotonic()

    def wait(self, cost: float) -> float:
        """Return the seconds until `cost` may be taken, 0 for now."""
        now = time.monotonic()
        self._level = min(self._level + (now - self._at) * self.rate, self._most)
        self._at = now
        return max(0.0, (min(cost, self._most) - self._level) / self.rate)

    def take(self, cost: float) -> None:
        """Take `cost`."""
        self._level -= cost


class Quotas:
    """The buckets of every token that has any."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def wait(self, token: Token, size: int) -> tuple[float, str]:
        """Return the seconds until a message of `size` bytes may pass, 0 for now, and the quota that says so."""
        waits = [(bucket.wait(cost), what) for bucket, cost, what in self._of(token, size)]
        return max(waits, default=(0.0, ""))

    def take(self, token: Token, size: int) -> None:
        """Count one message of `size` bytes."""
        for bucket, cost, _ in self._of(token, size):
            bucket.take(cost)

    def _of(self, token: Token, size: int) -> list[tuple[Bucket, float, str]]:
        found: list[tuple[Bucket, float, str]] = []
        if token.requests_per_s is not None:
            found.append((self._bucket(token.id, "requests", token.requests_per_s), 1.0, "requests"))
        if token.bytes_per_s is not None:
            found.append((self._bucket(token.id, "bytes", token.bytes_per_s), float(size), "bytes"))
        return found

    def _bucket(self, token_id: str, what: str, rate: float) -> Bucket:
        bucket = self._buckets.get((token_id, what))
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[(token_id, what)] = Bucket(rate)
        return bucket
