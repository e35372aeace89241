"""What each RPC needs, in one table. What is not in it is refused, with tokens and without.

docs/security.md has the same table for people; a test holds the two, and the services, together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

HEALTH = "/grpc.health.v1.Health/"  # open to all: balancers have no token


@dataclass(frozen=True, slots=True)
class Rule:
    """What one RPC needs and does.

    `scopes`: a token needs one of these; none: any token will do. `collections`: the fields of a request that name
    collections, the one it is about first. `empty_is_all`: a request that names none is about all of them.
    `lists`: replies list collections. `writes`: calls go to the audit log. `count`: how many items a reply says were
    written.
    """

    scopes: frozenset[str] = frozenset()
    collections: tuple[str, ...] = ()
    empty_is_all: bool = False
    lists: bool = False
    writes: bool = False
    count: Callable[[Any], int] | None = None

    def named(self, request: Any) -> list[str]:
        """Return the collections that a request names, the one it is about first."""
        found: list[str] = []
        for field in self.collections:
            value = attrgetter(field)(request)
            found += [value] if isinstance(value, str) else value
        return [name for name in found if name]


def _needs(*scopes: str, **rest: Any) -> Rule:
    return Rule(scopes=frozenset(scopes), **rest)


_ANY = ("search", "write", "train", "admin")  # whoever works with a collection looks at its description first
_IN = {"collections": ("collection",)}

_EMBEDDING = {
    "Embed": _needs("embed"),
    "EmbedStream": _needs("embed"),
    "ListBackbones": _needs("embed"),
    "GetServerInfo": _needs(),  # clients must know the limits whatever they do
}
_COLLECTION = {
    "CreateCollection": _needs("admin", collections=("name",), writes=True),
    "GetCollection": _needs(*_ANY, collections=("name",)),
    "ListCollections": _needs(*_ANY, lists=True),
    "UpdateCollection": _needs("admin", collections=("name",), writes=True),
    "DeleteCollection": _needs("admin", collections=("name",), writes=True),
    "CheckCollection": _needs("admin", **_IN, empty_is_all=True, writes=True),
    "UpsertItems": _needs("write", **_IN, writes=True, count=lambda reply: sum(bool(r.outcome) for r in reply.results)),
    "DeleteItems": _needs("write", **_IN, writes=True, count=lambda reply: int(reply.deleted)),
    "LabelItems": _needs("write", **_IN, writes=True, count=lambda reply: int(reply.changed)),
    "GetItems": _needs("search", **_IN),
    "ListItems": _needs("search", **_IN),
    "CountItems": _needs("search", **_IN),
    "Search": _needs("search", **_IN),
    "FindDuplicates": _needs("search", **_IN),
}
_HEAD = {
    "TrainHead": _needs("train", collections=("collection", "adaptation.target"), writes=True),
    "UpdateHead": _needs("train", **_IN, writes=True),
    "DeleteHead": _needs("train", **_IN, writes=True),
    "GetHead": _needs("search", "train", **_IN),
    "ListHeads": _needs("search", "train", **_IN),
    "Classify": _needs("search", **_IN),
    "EvaluateHead": _needs("search", "train", collections=("collection", "on_collection")),
    "RankBackbones": _needs("train", collections=("collections",)),
    "ReviewLabels": _needs("train", **_IN),
    "SelectSource": _needs("train", collections=("collection", "target")),
    "PseudoLabel": _needs(
        "write",
        collections=("collection", "head_collection"),
        writes=True,
        count=lambda reply: sum(each.taken for each in reply.items),
    ),
}

RULES: dict[str, Rule] = {
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _needs(),
    **{f"/likewise.v1.EmbeddingService/{name}": rule for name, rule in _EMBEDDING.items()},
    **{f"/likewise.v1.CollectionService/{name}": rule for name, rule in _COLLECTION.items()},
    **{f"/likewise.v1.HeadService/{name}": rule for name, rule in _HEAD.items()},
}
