"""Vectors of pictures seen before, by the hash of their bytes and the space: no decode, no forward."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

OVERHEAD = 300  # bytes of Python objects that an entry takes beside its numbers


class EmbeddingCache:
    """Keeps what was used last, up to `max_bytes`; 0 keeps nothing. Any thread may call."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __bool__(self) -> bool:
        """Return whether anything is kept at all."""
        return self._max_bytes > 0

    def __len__(self) -> int:
        return len(self._vectors)

    @staticmethod
    def key(data: bytes, fingerprint: str) -> bytes:
        """Return the key of an encoded picture in a space. SHA-256: callers must not be able to forge a hit."""
        return hashlib.sha256(data).digest() + fingerprint.encode()

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Return the (dim,) vector kept under `key`."""
        with self._lock:
            vector = self._vectors.get(key)
            if vector is not None:
                self._vectors.move_to_end(key)
            return vector

    def put(self, key: bytes, vector: NDArray[np.float32]) -> None:
        """Keep a (dim,) vector, dropping those unused longest."""
        size = vector.nbytes + OVERHEAD
        if size > self._max_bytes:
            return
        kept = vector.copy()  # a row of a batch would keep the whole batch
        kept.flags.writeable = False
        with self._lock:
            if key not in self._vectors:
                self._vectors[key] = kept
                self.bytes += size
            while self.bytes > self._max_bytes:
                _, dropped = self._vectors.popitem(last=False)
                self.bytes -= dropped.nbytes + OVERHEAD
