"""What a store should answer: a dict of items, brute force in NumPy, and filters worked out in Python."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.store.filters import And, Compare, Exists, Field, Filter, In, IsNull, Like, Not, Or, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from likewise_server.store import Metric, NewItem, SearchResult

_MISSING = object()


def matches(tree: Filter | None, item: NewItem) -> bool:
    """Work out a filter for one item, by Python's own rules."""
    match tree:
        case None:
            return True
        case And(terms):
            return all(matches(term, item) for term in terms)
        case Or(terms):
            return any(matches(term, item) for term in terms)
        case Not(term):
            return not matches(term, item)
        case Compare(field, op, value):
            return _compare(_value(field, item), op, value)
        case In(field, values):
            return any(_compare(_value(field, item), "=", value) for value in values)
        case Like(field, pattern):
            stored = _value(field, item)
            regex = "".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in _lower(pattern))
            return isinstance(stored, str) and re.fullmatch(regex, _lower(stored), re.DOTALL) is not None
        case IsNull(field):
            return _value(field, item) in (None, _MISSING)
        case Exists(field):
            stored = _value(field, item)
            return stored is not _MISSING and not (field.column and stored is None)


def _value(field: Field, item: NewItem) -> Any:
    if field.column:
        return getattr(item, field.column)
    value: Any = item.attributes
    for name in field.path:
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int | float) else "other"


def _compare(stored: Any, op: str, value: Any) -> bool:
    if _kind(stored) != _kind(value):
        return False
    return bool(
        {"=": stored == value, "<": stored < value, "<=": stored <= value, ">": stored > value}.get(op, stored >= value)
    )


def _lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def scores(rows: NDArray[np.float32], query: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    """Score every row; larger is nearer."""
    if metric == "cosine":
        rows, query = _unit(rows), _unit(query[np.newaxis])[0]
    wide, q = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.asarray(-np.sqrt(np.sum((wide - q) ** 2, axis=1)))
    return np.asarray(np.sum(wide * q, axis=1))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.sum(wide**2, axis=1, keepdims=True))
    return np.asarray(wide / lengths, np.float32)


class Model:
    """One collection: items by id, in order of their last change."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.items: dict[str, NewItem] = {}

    def upsert(self, item: NewItem) -> str:
        """Store an item; return the outcome."""
        old = self.items.get(item.id)
        if old is not None and _content(old) == _content(item):
            return "unchanged"
        self.items.pop(item.id, None)
        self.items[item.id] = item
        return "updated" if old else "created"

    def relabel(self, item_id: str, label: str | None) -> str:
        """Label an item anew, which keeps its place; return the outcome."""
        old = self.items[item_id]
        self.items[item_id] = replace(old, label=label)
        return "unchanged" if old.label == label else "updated"

    def matching(self, where: str = "") -> list[NewItem]:
        """Return the items that match, oldest first."""
        tree = parse(where)
        return [item for item in self.items.values() if matches(tree, item)]

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        where: str = "",
        exclude: Collection[str] = (),
        min_score: float = -np.inf,
    ) -> list[tuple[str, float]]:
        """Return ids and scores of the nearest that reach `min_score`, ties oldest first."""
        items = [item for item in self.matching(where) if item.id not in exclude]
        if not items:
            return []
        found = scores(np.stack([item.vector for item in items]), query, self.metric)
        order = np.argsort(-found, kind="stable")[:k]
        return [(items[i].id, float(found[i])) for i in order if found[i] >= min_score]


def _content(item: NewItem) -> tuple[object, ...]:
    attributes = json.dumps(item.attributes, sort_keys=True)
    return item.vector.tobytes(), item.label, attributes, item.uri, item.content_hash


def answers(result: SearchResult) -> list[list[tuple[str, float]]]:
    """Return the ids and scores of a result, one list per query."""
    return [[(hit.item.id, hit.score) for hit in hits] for hits in result.hits]


def check_search(
    model: Model,
    result: SearchResult,
    queries: NDArray[np.float32],
    k: int,
    where: str = "",
    exclude: Sequence[str] = (),
    min_score: float = -np.inf,
) -> None:
    """Assert that a result is the model's: same ids, same order, same scores."""
    expected = [model.search(query, k, where, exclude, min_score) for query in queries]
    found = answers(result)
    assert [[i for i, _ in hits] for hits in found] == [[i for i, _ in hits] for hits in expected]
    for hits, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose([s for _, s in hits], [s for _, s in wanted], rtol=1e-12, atol=1e-12)
    assert result.exact
    assert result.measured_recall is None
    assert result.filtered_count == (len(model.matching(where)) if where else None)
