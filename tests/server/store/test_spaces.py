"""A collection that is deleted while it is looked up is not remembered."""

from __future__ import annotations

from likewise_server.store import CollectionSpace
from likewise_server.store.spaces import Spaces

OLD = CollectionSpace("c", 3, "cosine", "f", "", 1.0)
NEW = CollectionSpace("c", 4, "cosine", "g", "", 2.0)


def test_what_was_read_once_is_known() -> None:
    spaces = Spaces()
    assert spaces.known("c") is None
    assert spaces.of("c", lambda: OLD) is OLD
    assert spaces.of("c", lambda: NEW) is OLD
    assert spaces.known("c") is OLD


def test_what_was_deleted_while_it_was_read_is_not_kept() -> None:
    spaces = Spaces()

    def slow() -> CollectionSpace:
        spaces.forget("c")
        return OLD

    assert spaces.of("c", slow) is OLD
    assert spaces.known("c") is None
    assert spaces.of("c", lambda: NEW) is NEW
