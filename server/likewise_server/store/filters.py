"""The text of a `where` becomes one tree; `filter_sql` turns the tree into SQL.

    label = 'cat' and (year >= 2020 or exif.camera like 'Canon%') and not exists(blurred)

Fields are `id`, `label`, `uri` and, under any other name, attributes, with dots into nested ones. Backticks
hold odd names and always mean an attribute: `` `label` ``. Strings stand in single or double quotes, doubled
to hold a quote. Keywords are case-insensitive, names are not.

Every comparison is true or false, never unknown. Positive ones (`=`, `<`, `in`, `like`, …) are true only for
a value of the same type: numbers with numbers, strings with strings, true and false with themselves.
Negative ones mean "present, and not": `x != v` is `x is not null and not x = v`, and so `not in` and
`not like`. A missing attribute is null; only `exists(x)` tells it from one stored as null.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from likewise_server.errors import InvalidArgument

MAX_LENGTH = 16 * 1024
MAX_DEPTH = 64
MAX_LIST = 1000
BUILTIN = frozenset({"id", "label", "uri"})
KEYWORDS = frozenset({"and", "or", "not", "in", "like", "is", "null", "true", "false"})
COMPARISONS = frozenset({"=", "!=", "<>", "<", "<=", ">", ">="})

Scalar: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Field:
    """A built-in column (`path` empty) or the path of an attribute (`column` empty)."""

    column: str
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compare:
    """`field op value`, op one of = < <= > >=."""

    field: Field
    op: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The field equals one of the values."""

    field: Field
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """The field is text that matches: % for any run, _ for one character, ASCII letters in either case."""

    field: Field
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    """The field is missing or null."""

    field: Field


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there, if only as null."""

    field: Field


@dataclass(frozen=True, slots=True)
class Not:
    """The term is false."""

    term: Filter


@dataclass(frozen=True, slots=True)
class And:
    """All terms are true."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the terms is true."""

    terms: tuple[Filter, ...]


Filter: TypeAlias = Compare | In | Like | IsNull | Exists | Not | And | Or


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int

    @property
    def shown(self) -> str:
        return "the end" if self.kind == "end" else f"`{self.text[:40]}`"


_TOKENS = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)
      | (?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<quoted>`(?:[^`]|``)+`)
      | (?P<symbol><=|>=|<>|!=|[=<>(),.])
      | (?P<name>[^\W\d]\w*)""",
    re.VERBOSE,
)


def _fail(column: int, text: str) -> NoReturn:
    raise InvalidArgument(f"where, column {column}: {text}")


def _tokens(where: str) -> list[_Token]:
    tokens = []
    at = 0
    while at < len(where):
        match = _TOKENS.match(where, at)
        if match is None:
            if where[at] in "'\"`":
                _fail(at + 1, f"the quote {where[at]} is not closed")
            _fail(at + 1, f"unexpected character {where[at]!r}")
        kind = str(match.lastgroup)
        text = match.group()
        if kind == "name" and text.lower() in KEYWORDS:
            kind, text = "keyword", text.lower()
        if kind != "space":
            tokens.append(_Token(kind, text, at + 1))
        at = match.end()
    tokens.append(_Token("end", "", len(where) + 1))
    return tokens


def parse(where: str) -> Filter | None:
    """Return the tree of a filter, None for an empty one.

    Raises InvalidArgument with the column (from 1, in characters) and what was expected there.
    """
    if len(where) > MAX_LENGTH:
        raise InvalidArgument(f"where: {len(where)} characters are too many; the limit is {MAX_LENGTH}")
    if not where.isprintable() and any("\ud800" <= c <= "\udfff" for c in where):
        raise InvalidArgument("where: the text holds half a surrogate pair, which is not a character")
    if not where.strip():
        return None
    return _Parser(_tokens(where)).whole()


class _Parser:
    """Recursive descent, one method per rule; the depth of the recursion is limited."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> bool:
        token = self._next
        if token.kind in {"symbol", "keyword"} and token.text in texts:
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._fail(f"`{text}`")

    def _fail(self, expected: str) -> NoReturn:
        _fail(self._next.column, f"expected {expected}, found {self._next.shown}")

    def whole(self) -> Filter:
        tree = self._either()
        if self._next.kind != "end":
            self._fail("`and`, `or` or the end")
        return tree

    def _either(self) -> Filter:
        terms = [self._both()]
        while self._take("or"):
            terms.append(self._both())
        return terms[0] if len(terms) == 1 else Or(_flat(Or, terms))

    def _both(self) -> Filter:
        terms = [self._term()]
        while self._take("and"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else And(_flat(And, terms))

    def _term(self) -> Filter:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _fail(self._next.column, f"nested more than {MAX_DEPTH} deep")
        tree: Filter
        if self._take("not"):
            tree = Not(self._term())
        elif self._take("("):
            tree = self._either()
            self._expect(")")
        else:
            tree = self._comparison()
        self._depth -= 1
        return tree

    def _comparison(self) -> Filter:  # noqa: C901  # one branch per form
        follower = self._tokens[min(self._at + 1, len(self._tokens) - 1)]
        if self._next.kind == "name" and self._next.text.lower() == "exists" and follower.text == "(":
            self._at += 2
            tree = Exists(self._field())
            self._expect(")")
            return tree
        field = self._field()
        if self._take("is"):
            negative = self._take("not")
            self._expect("null")
            return Not(IsNull(field)) if negative else IsNull(field)
        if self._take("not"):
            if self._take("in"):
                return _present_and_not(field, self._list(field))
            if self._take("like"):
                return _present_and_not(field, self._like(field))
            self._fail("`in` or `like`")
        if self._take("in"):
            return self._list(field)
        if self._take("like"):
            return self._like(field)
        operator = self._next
        if not self._take(*COMPARISONS):
            self._fail("a comparison (= != < <= > >= in like is)")
        value_at = self._next.column
        value = self._value(field)
        if operator.text in {"!=", "<>"}:
            return _present_and_not(field, Compare(field, "=", value))
        if isinstance(value, bool) and operator.text != "=":
            _fail(value_at, f"true and false have no order; use = or != instead of {operator.text}")
        return Compare(field, operator.text, value)

    def _list(self, field: Field) -> In:
        self._expect("(")
        values = [self._value(field)]
        while self._take(","):
            if len(values) == MAX_LIST:
                _fail(self._next.column, f"a list holds at most {MAX_LIST} values")
            values.append(self._value(field))
        if not self._take(")"):
            self._fail("`,` or `)`")
        return In(field, tuple(values))

    def _like(self, field: Field) -> Like:
        if self._next.kind != "string":
            self._fail("a quoted pattern")
        return Like(field, str(self._value(field)))

    def _field(self) -> Field:
        token = self._next
        path = [self._name()]
        while self._take("."):
            path.append(self._name())
        if len(path) == 1 and token.kind == "name" and path[0] in BUILTIN:
            return Field(path[0])
        return Field("", tuple(path))

    def _name(self) -> str:
        token = self._next
        if token.kind not in {"name", "quoted"}:
            self._fail("a field name (odd names and keywords go in backticks)")
        self._at += 1
        name = token.text if token.kind == "name" else token.text[1:-1].replace("``", "`")
        if any(c in '"\\' or c < " " for c in name):
            # SQLite's JSON paths have no way to write these.
            _fail(token.column, 'a filter cannot name an attribute with ", \\ or a control character')
        return name

    def _value(self, field: Field) -> Scalar:
        token = self._next
        value: Scalar
        if token.kind == "string":
            quote = token.text[0]
            value = token.text[1:-1].replace(quote * 2, quote)
        elif token.kind == "number":
            value = _number(token)
        elif token.text in {"true", "false"} and token.kind == "keyword":
            value = token.text == "true"
        elif token.text == "null" and token.kind == "keyword":
            _fail(token.column, "nothing compares with null; write `is null` or `is not null`")
        else:
            self._fail("a value (a number, a quoted string, true or false)")
        if field.column and not isinstance(value, str):
            _fail(token.column, f"{field.column} is text; put quotes around {token.text}")
        self._at += 1
        return value


def _number(token: _Token) -> int | float:
    if token.text.lstrip("+-").isdigit():
        # Past 64 bits SQLite has floats only. Converted only when short: int() of long digits is slow.
        whole = int(token.text) if len(token.text) <= 20 else None  # noqa: PLR2004  # 2**63 has 19 digits
        if whole is not None and -(2**63) <= whole < 2**63:
            return whole
    value = float(token.text)
    if not math.isfinite(value):
        _fail(token.column, f"{token.text[:40]} is too large for a number")
    return value


def _flat(kind: type[And | Or], terms: list[Filter]) -> tuple[Filter, ...]:
    """Take the terms of the same kind apart: parentheses that change nothing leave no trace."""
    return tuple(each for term in terms for each in (term.terms if isinstance(term, kind) else (term,)))


def _present_and_not(field: Field, positive: Filter) -> And:
    return And((Not(IsNull(field)), Not(positive)))
