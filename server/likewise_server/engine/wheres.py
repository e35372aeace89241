"""Filters made from others: the one place where names and values are quoted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from likewise_server.errors import InvalidArgument
from likewise_server.store.filters import MAX_LENGTH, MAX_LIST, Field, IsNull, Not, Scalar, parse
from likewise_server.store.types import Item


@dataclass(frozen=True, slots=True)
class GroupField:
    """A field whose values items are grouped by. `text` is its name as filters have it."""

    field: Field
    text: str

    def value_of(self, item: Item) -> Scalar | None:
        """Return an item's text, number, true or false; None where it has none of these."""
        if self.field.column:
            return item.label
        value: object = item.attributes
        for name in self.field.path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, (str, int, float)) else None

    def present(self) -> str:
        """Return a filter that keeps the items that have a value to group by: no null, list or object."""
        if self.field.column:
            return f"{self.text} is not null"
        name = self.text
        return f"({name} like '%' or {name} <= 0 or {name} > 0 or {name} in (true, false))"

    def is_value(self, value: Scalar) -> str:
        """Return a filter that keeps the items with one value."""
        return f"{self.text} = {quoted(value)}"

    def is_none_of(self, values: Iterable[Scalar], room: int) -> str:
        """Return a filter of at most `room` characters that leaves out as many of the values as fit, in order."""
        lists: list[list[str]] = []
        around = len(f" and ({self.text} not in ())")
        for value in values:
            text = quoted(value)
            new = not lists or len(lists[-1]) == MAX_LIST
            room -= len(text) + len(", ") + around * new
            if room < 0:
                break
            if new:
                lists.append([])
            lists[-1].append(text)
        return both(*(f"{self.text} not in ({', '.join(texts)})" for texts in lists))


def group_field(name: str) -> GroupField:
    """Return the field that `name` means in a filter: label, or an attribute with dots into nested ones.

    Raises InvalidArgument for anything else.
    """
    advice = "give label, or the name of an attribute, as exif.camera, with odd names in backticks"
    try:
        tree = parse(f"{name} is not null")  # so that names mean here what they mean there
    except InvalidArgument as error:
        raise InvalidArgument(f"cannot group by {name!r}: {advice}") from error
    if not (isinstance(tree, Not) and isinstance(tree.term, IsNull)) or tree.term.field.column not in ("", "label"):
        raise InvalidArgument(f"cannot group by {name!r}: {advice}")
    field = tree.term.field
    return GroupField(field, field.column or ".".join(f"`{part.replace('`', '``')}`" for part in field.path))


def quoted(value: Scalar) -> str:
    """Return a value as filters write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def both(*wheres: str) -> str:
    """Return the filter that keeps what all of them keep; empty ones keep everything.

    Each must be a filter by itself, which `parse` has found: parentheses that it does not close would swallow others.
    """
    given = [where for where in wheres if where.strip()]
    return given[0] if len(given) == 1 else " and ".join(f"({where})" for where in given)


def room_beside(*wheres: str) -> int:
    """Return how many characters a filter may have that is put beside these."""
    return MAX_LENGTH - sum(len(f" and (({where}))") for where in (*wheres, ""))
