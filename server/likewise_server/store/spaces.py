"""What never changes of a collection, in memory: what every search asks first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from likewise_server.store.types import CollectionSpace


class Spaces:
    """The spaces of the collections that were asked for, by name, until they are deleted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, CollectionSpace] = {}
        self._forgotten = 0

    def known(self, name: str) -> CollectionSpace | None:
        """Return what is known already, at once."""
        return self._known.get(name)

    def of(self, name: str, read: Callable[[], CollectionSpace]) -> CollectionSpace:
        """Return what is known, or what `read` returns, which is known from then on."""
        if (space := self._known.get(name)) is not None:
            return space
        before = self._forgotten
        space = read()
        with self._lock:
            if before == self._forgotten:  # else it may be of a collection that was deleted while it was read
                self._known[name] = space
        return space

    def forget(self, name: str) -> None:
        """Forget a collection, after it was deleted."""
        with self._lock:
            self._forgotten += 1
            self._known.pop(name, None)
