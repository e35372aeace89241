"""The kinds of head, each behind a loader, so that naming one costs nothing until it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from likewise_server.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from likewise_server.heads.base import Kind


def _ncm() -> Kind:
    from likewise_server.heads.ncm import KIND  # noqa: PLC0415

    return KIND


def _knn() -> Kind:
    from likewise_server.heads.knn import KIND  # noqa: PLC0415

    return KIND


def _lda() -> Kind:
    from likewise_server.heads.lda import KIND  # noqa: PLC0415

    return KIND


def _ridge() -> Kind:
    from likewise_server.heads.ridge import KIND  # noqa: PLC0415

    return KIND


def _logreg() -> Kind:
    from likewise_server.heads.logreg import KIND  # noqa: PLC0415

    return KIND


def _mlp() -> Kind:
    from likewise_server.heads.mlp import KIND  # noqa: PLC0415

    return KIND


def _ensemble() -> Kind:
    from likewise_server.heads.ensemble import KIND  # noqa: PLC0415

    return KIND


# From the simplest to the most elaborate.
_LOADERS: dict[str, Callable[[], Kind]] = {
    "ncm": _ncm,
    "ridge": _ridge,
    "lda": _lda,
    "logreg": _logreg,
    "knn": _knn,
    "mlp": _mlp,
    "ensemble": _ensemble,
}


def kinds() -> tuple[str, ...]:
    """Return what `train(kind=...)` accepts: "auto" and every registered kind."""
    return ("auto", *names())


def names() -> tuple[str, ...]:
    """Return the registered kinds."""
    return tuple(_LOADERS)


def load(name: str) -> Kind:
    """Return the kind called `name`; InvalidArgument where there is none."""
    if name not in _LOADERS:
        raise InvalidArgument(f"unknown kind of head {name!r}: use one of {', '.join(kinds())}")
    return _LOADERS[name]()
