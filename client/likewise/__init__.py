"""likewise: vectors from images, search over them, and new classes from a handful of examples.

>>> from likewise import Client
>>> with Client("localhost:50051") as lw:
...     vectors = lw.embed(["cat.jpg"]).vectors

Nothing is imported until it is used, so `import likewise` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from likewise._version import __version__

if TYPE_CHECKING:
    from likewise.aio import AsyncClient
    from likewise.collection import AsyncCollection
    from likewise.errors import LikewiseError
    from likewise.sync import Client, Collection

__all__ = ["AsyncClient", "AsyncCollection", "Client", "Collection", "LikewiseError", "__version__"]

_HOMES = {
    "AsyncClient": "likewise.aio",
    "AsyncCollection": "likewise.collection",
    "Client": "likewise.sync",
    "Collection": "likewise.sync",
    "LikewiseError": "likewise.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'likewise' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # with the rest, on first use

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
