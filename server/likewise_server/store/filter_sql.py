"""A filter tree becomes a condition on `items`, with every value bound and no name pasted in that is not declared.

A condition may come out NULL where the tree says false. At the top, and under AND and OR, SQL treats the
two alike; NOT is compiled as IS NOT TRUE, which treats them alike too. So nothing needs wrapping, and
`label = ?` can still use its index.

The attributes that a collection declares are written as their index has them, see `attribute_indexes`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias, assert_never

from likewise_server.store import attribute_indexes
from likewise_server.store.filters import And, Compare, Exists, Field, Filter, In, IsNull, Like, Not, Or, Scalar

if TYPE_CHECKING:
    from collections.abc import Sequence

Condition: TypeAlias = tuple[str, list[Scalar]]
GROUP = 64
_OPERATORS = {"=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_COLUMNS = {"id": "ext_id", "label": "label", "uri": "uri"}
_LAST_BEFORE_SURROGATES = "\ud7ff"


def where_clause(tree: Filter | None, indexed: Sequence[str] = ()) -> Condition:
    """Return ` AND (…)` and its parameters, or nothing without a filter.

    `indexed` are the attributes that the collection declares. What is selected does not depend on them.
    """
    if tree is None:
        return "", []
    sql, values = _Compiler(indexed).tree(tree)
    return f" AND ({sql})", values


class _Compiler:
    """Compiles for a collection that declares these attributes."""

    def __init__(self, indexed: Sequence[str]) -> None:
        self._declared = {attribute_indexes.path_of(name) for name in indexed}

    def tree(self, tree: Filter, *, positive: bool = True) -> Condition:
        """Return a condition on the columns of `items`, or on their negative, and its parameters in order.

        NOT is carried down to the comparisons, which keeps SQL's own nesting low.
        """
        match tree:
            case Not(term):
                return self.tree(term, positive=not positive)
            case And(terms):
                return _joined("AND" if positive else "OR", [self.tree(t, positive=positive) for t in terms])
            case Or(terms):
                return _joined("OR" if positive else "AND", [self.tree(t, positive=positive) for t in terms])
            case IsNull(field) if not positive:
                value, kind, path = self._expressions(field)
                # The second half lets SQLite see that the index, which leaves out the rest, will do.
                return f"({value} IS NOT NULL AND {kind} IS NOT NULL)", [*path, *path]
            case _:
                sql, values = self._comparison(tree)
                return (sql if positive else f"({sql}) IS NOT TRUE"), values

    def _comparison(self, tree: Compare | In | Like | IsNull | Exists) -> Condition:
        match tree:
            case Compare(field, op, value):
                return self._typed(field, f"{_OPERATORS[op]} ?", [value])
            case In(field, values):
                return self._in(field, values)
            case Like(field, pattern):
                return self._like(field, pattern)
            case IsNull(field):
                value_sql, _, path = self._expressions(field)
                return f"{value_sql} IS NULL", [*path]
            case Exists(field):
                _, kind, path = self._expressions(field)
                return f"{kind} IS NOT NULL", [*path]
            case _:
                assert_never(tree)

    def _expressions(self, field: Field) -> tuple[str, str, list[str]]:
        """Return the SQL of the value and of what is NULL only where it is missing, and what each of them binds."""
        if field.column:
            column = f"items.{_COLUMNS[field.column]}"
            return column, column, []
        if field.path in self._declared:
            return *attribute_indexes.expressions(field.path, "items."), []
        path = "$" + "".join(f'."{name}"' for name in field.path)
        return "json_extract(items.attributes, ?)", "json_type(items.attributes, ?)", [path]

    def _typed(self, field: Field, test: str, bound: Sequence[Scalar]) -> Condition:
        """Return `field test`, true only for stored values of the type of what is bound."""
        value, kind, path = self._expressions(field)
        if field.column:
            return f"{value} {test}", list(bound)
        if isinstance(bound[0], bool):
            # json_extract gives 1 and 0 for these, so the type decides; the value is there for the index.
            types = ", ".join("'true'" if each else "'false'" for each in bound)
        else:
            types = "'text'" if isinstance(bound[0], str) else "'integer', 'real'"
        return f"({kind} IN ({types}) AND {value} {test})", [*path, *path, *bound]

    def _in(self, field: Field, values: Sequence[Scalar]) -> Condition:
        texts = [v for v in values if isinstance(v, str)]
        truths = [v for v in values if isinstance(v, bool)]
        numbers = [v for v in values if not isinstance(v, str | bool)]
        groups = [group for group in (texts, truths, numbers) if group]
        return _joined("OR", [self._typed(field, f"IN ({', '.join('?' * len(group))})", group) for group in groups])

    def _like(self, field: Field, pattern: str) -> Condition:
        sql, values = self._typed(field, "LIKE ?", [pattern])
        if field.path not in self._declared:
            return sql, values
        value, _, _ = self._expressions(field)
        bounds: list[Condition] = [(f"{value} {op} ?", [bound]) for op, bound in _bounds(pattern)]
        return _joined("AND", [(sql, values), *bounds])


def _bounds(pattern: str) -> list[tuple[str, str]]:
    """Return what bounds the texts that a pattern may match, by code points: SQLite has no index for LIKE itself.

    Each ASCII letter of the beginning stands for the small one or the capital, which comes before it.
    """
    beginning = re.split("[%_\0]", pattern, maxsplit=1)[0].encode()
    if not beginning:
        return []
    first, last = beginning.upper().decode(), beginning.lower().decode()
    bounds = [(">=", first)]
    if last[-1] < _LAST_BEFORE_SURROGATES:
        bounds.append(("<", last[:-1] + chr(ord(last[-1]) + 1)))
    return bounds


def _joined(word: str, parts: Sequence[Condition]) -> Condition:
    """Join in groups: SQLite takes a chain of a thousand terms, and a nesting of thirty, but not more."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) > GROUP:
        parts = [_joined(word, parts[start : start + GROUP]) for start in range(0, len(parts), GROUP)]
        return _joined(word, parts)
    sql = f" {word} ".join(sql for sql, _ in parts)
    return f"({sql})", [value for _, values in parts for value in values]
