"""Index whole image collections: what is there, what is new since last time, and all of that to a server.

>>> from likewise_indexer import index_source
>>> index_source("photos/", collection="pets").new

A source yields entries, the journal says which of them are done, the rest are read, hashed and upserted,
and what the server has acknowledged is written to the journal. Nothing is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likewise_indexer.bulk import index_source, run
    from likewise_indexer.sources import Entry, Source, open_source
    from likewise_indexer.summary import Summary

__all__ = ["Entry", "Source", "Summary", "index_source", "open_source", "run"]

_HOMES = {
    "Entry": "likewise_indexer.sources",
    "Source": "likewise_indexer.sources",
    "Summary": "likewise_indexer.summary",
    "index_source": "likewise_indexer.bulk",
    "open_source": "likewise_indexer.sources",
    "run": "likewise_indexer.bulk",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'likewise_indexer' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # with the rest, on first use

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
