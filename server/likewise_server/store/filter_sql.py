"""A filter tree becomes a condition on `items`, with every name and value bound, none pasted in.

A condition may come out NULL where the tree says false. At the top, and under AND and OR, SQL treats the
two alike; NOT is compiled as IS NOT TRUE, which treats them alike too. So nothing needs wrapping, and
`label = ?` can still use its index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, assert_never

from likewise_server.store.filters import (
    And,
    Compare,
    Exists,
    Field,
    Filter,
    In,
    IsNull,
    Like,
    Not,
    Or,
    Scalar,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Condition: TypeAlias = tuple[str, list[Scalar]]
GROUP = 64
_OPERATORS = {"=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def where_clause(where: str) -> Condition:
    """Return ` AND (…)` and its parameters, or nothing for an empty filter; raises InvalidArgument."""
    tree = parse(where)
    if tree is None:
        return "", []
    sql, values = compile_tree(tree)
    return f" AND ({sql})", values


def compile_tree(tree: Filter, *, positive: bool = True) -> Condition:
    """Return a condition on the columns of `items`, or on their negative, and its parameters in order.

    NOT is carried down to the comparisons, which keeps SQL's own nesting low.
    """
    match tree:
        case Not(term):
            return compile_tree(term, positive=not positive)
        case And(terms):
            return _joined("AND" if positive else "OR", [compile_tree(t, positive=positive) for t in terms])
        case Or(terms):
            return _joined("OR" if positive else "AND", [compile_tree(t, positive=positive) for t in terms])
        case _:
            sql, values = _comparison(tree)
            return (sql if positive else f"({sql}) IS NOT TRUE"), values


def _comparison(tree: Compare | In | Like | IsNull | Exists) -> Condition:
    match tree:
        case Compare(field, op, value):
            return _typed(field, value, f"{_OPERATORS[op]} ?", [value])
        case In(field, values):
            return _in(field, values)
        case Like(field, pattern):
            return _typed(field, pattern, "LIKE ?", [pattern])
        case IsNull(field) if field.column:
            return f"items.{_column(field)} IS NULL", []
        case IsNull(field):
            return "coalesce(json_type(items.attributes, ?), 'null') = 'null'", [_path(field)]
        case Exists(field) if field.column:
            return f"items.{_column(field)} IS NOT NULL", []
        case Exists(field):
            return "json_type(items.attributes, ?) IS NOT NULL", [_path(field)]
        case _:
            assert_never(tree)


def _joined(word: str, parts: Sequence[Condition]) -> Condition:
    """Join in groups: SQLite takes a chain of a thousand terms, and a nesting of thirty, but not more."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) > GROUP:
        parts = [_joined(word, parts[start : start + GROUP]) for start in range(0, len(parts), GROUP)]
        return _joined(word, parts)
    sql = f" {word} ".join(sql for sql, _ in parts)
    return f"({sql})", [value for _, values in parts for value in values]


def _typed(field: Field, value: Scalar, test: str, bound: Sequence[Scalar]) -> Condition:
    """Return `field test`, true only for stored values of the type of `value`."""
    if field.column:
        return f"items.{_column(field)} {test}", list(bound)
    path = _path(field)
    if isinstance(value, bool):
        # json_extract gives 1 and 0 for these, so the type is the value.
        types = ", ".join("'true'" if each else "'false'" for each in bound)
        return f"json_type(items.attributes, ?) IN ({types})", [path]
    types = "'text'" if isinstance(value, str) else "'integer', 'real'"
    sql = f"(json_type(items.attributes, ?) IN ({types}) AND json_extract(items.attributes, ?) {test})"
    return sql, [path, path, *bound]


def _in(field: Field, values: Sequence[Scalar]) -> Condition:
    texts = [v for v in values if isinstance(v, str)]
    truths = [v for v in values if isinstance(v, bool)]
    numbers = [v for v in values if not isinstance(v, str | bool)]
    return _joined(
        "OR",
        [
            _typed(field, group[0], f"IN ({', '.join('?' * len(group))})", group)
            for group in (texts, truths, numbers)
            if group
        ],
    )


def _column(field: Field) -> str:
    return {"id": "ext_id", "label": "label", "uri": "uri"}[field.column]


def _path(field: Field) -> str:
    return "$" + "".join(f'."{name}"' for name in field.path)
