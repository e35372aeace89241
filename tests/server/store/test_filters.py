from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract.store_model import matches
from likewise_server.errors import InvalidArgument
from likewise_server.store import NewItem, catalog
from likewise_server.store.filter_sql import where_clause
from likewise_server.store.filters import And, Compare, Field, In, Like, Not, Or, parse
from likewise_server.store.items import ids_by_vid, matching_among, upsert
from likewise_server.store.prepared import prepare
from likewise_server.store.schema import MIGRATIONS, translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VECTOR = np.ones(2, np.float32)
ITEMS = [
    NewItem("a", VECTOR, "cat", {"year": 2020, "ok": True, "exif": {"camera": "Canon 5D"}}, "u/1"),
    NewItem("b", VECTOR, "dog", {"year": 2021.5, "ok": False, "exif": {"camera": None}}, "u/2"),
    NewItem("c", VECTOR, None, {"year": "2020", "ok": 1, "exif": "flat"}, "U/3"),
    NewItem("d", VECTOR, "it's", {"year": None, "tags": ["x"], "odd name.x": 1, "label": "inner"}),
    NewItem("e", VECTOR, 'say "x"', {"year": -5, "big": 2**70, "naïve": "É", "in": 3, "exists": 4}),
    NewItem("f", VECTOR, "", {"year": 0, "ok": {"year": 2020}, "s": "a\nb%_"}),
]


DECLARED = ("year", "ok", "exif.camera", "ok.year", "exists", "s", "nothing")


def database(items: Sequence[NewItem], indexed: Sequence[str] = ()) -> sqlite3.Connection:
    """A collection `c` that declares these attributes, and beside it one with the same items that does not."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for script in MIGRATIONS:
        db.executescript(script)
    for name, declared in (("c", indexed), ("beside", ())):
        create(db, name, declared)
        fill(db, name, items)
    return db


def create(db: sqlite3.Connection, name: str, indexed: Sequence[str]) -> None:
    catalog.create(
        db,
        name,
        dim=2,
        metric="cosine",
        fingerprint="f",
        backbone="",
        request_id="",
        index="auto",
        indexed=indexed,
        storage="fp32",
    )


def fill(db: sqlite3.Connection, name: str, items: Sequence[NewItem]) -> None:
    prepared, errors = prepare(items, catalog.find(db, name))
    assert errors == [None] * len(items)
    upsert(db, catalog.find(db, name).id, prepared)


@pytest.fixture(scope="module", params=[(), DECLARED], ids=["plain", "indexed"])
def rows(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    db = database(ITEMS, request.param)
    yield db
    db.close()


def query(db: sqlite3.Connection, where: str, start: str = "SELECT ext_id") -> sqlite3.Cursor:
    collection = catalog.find(db, "c")
    sql, values = where_clause(parse(where), collection.indexed)
    return db.execute(f"{start} FROM items WHERE collection_id = ?{sql}", (collection.id, *values))


def selected(db: sqlite3.Connection, where: str) -> str:
    return "".join(sorted(i for (i,) in query(db, where)))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", "abcdef"),
        ("  \n ", "abcdef"),
        ("label = 'cat'", "a"),
        ('label = "cat"', "a"),
        ("label = 'it''s'", "d"),
        ('label = "say ""x"""', "e"),
        ("LABEL = 'cat'", ""),  # names are case-sensitive: this is an attribute
        ("label != 'cat'", "bdef"),
        ("label <> 'cat'", "bdef"),
        ("not label = 'cat'", "bcdef"),
        ("label is null", "c"),
        ("label IS NOT NULL", "abdef"),
        ("`label` = 'inner'", "d"),
        ("year = 2020", "a"),
        ("year = 2020.0", "a"),
        ("year = '2020'", "c"),
        ("year > -5", "abf"),
        ("year >= -5", "abef"),
        ("year < 2021.5 and year > 0", "a"),
        ("year <= 2.0215e3", "abef"),
        ("year != 2020", "bcef"),
        ("not year = 2020", "bcdef"),
        ("year is null", "d"),
        ("exists(year)", "abcdef"),
        ("exists(exif)", "abc"),
        ("exists(exif.camera)", "ab"),
        ("exists(label)", "abdef"),
        ("exists(nothing)", ""),
        ("not exists(nothing)", "abcdef"),
        ("exists = 4", "e"),
        ("exif.camera is null", "bcdef"),
        ("exif.camera like 'canon%'", "a"),
        ("exif.camera like 'Canon _D'", "a"),
        ("exif.camera not like 'N%'", "a"),
        ("uri like 'u/_'", "abc"),
        ("uri like '%/%'", "abc"),
        ("uri = ''", "def"),
        ("s like '%\n%'", "f"),
        ("year like '2%'", "c"),
        ("ok = true", "a"),
        ("ok = false", "b"),
        ("ok != true", "bcf"),
        ("ok = 1", "c"),
        ("ok.year = 2020", "f"),
        ("ok in (true, 1, 'x')", "ac"),
        ("year in (2020, '2020', -5)", "ace"),
        ("year not in (2020, '2020')", "bef"),
        ("id in ('a', \"b\")", "ab"),
        ("id not in ('a', 'b')", "cdef"),
        ("tags = 'x'", ""),
        ("tags != 'x'", "d"),
        ("`odd name.x` = 1", "d"),
        ("`in` = 3", "e"),
        ("naïve = 'É'", "e"),
        ("big > 9223372036854775807", "e"),
        ("year < 99999999999999999999999", "abef"),
        ("label = 'cat' or label = 'dog' and year = 0", "a"),
        ("(label = 'cat' or label = 'dog') and year = 0", ""),
        ("not (label = 'cat' or year = 0)", "bcde"),
        ("not not label = 'cat'", "a"),
        ("label<'d'and(year>=0)", "af"),
        ("id > 'c'", "def"),
    ],
)
def test_filters_select(rows: sqlite3.Connection, where: str, expected: str) -> None:
    assert selected(rows, where) == expected
    assert "".join(item.id for item in ITEMS if matches(parse(where), item)) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label", "column 6: expected a comparison .* found the end"),
        ("label =", "column 8: expected a value .* found the end"),
        ("label = cat", "column 9: expected a value .* found `cat`"),
        ("label == 'cat'", "column 8: expected a value"),
        ("= 'cat'", "column 1: expected a field name"),
        ("label = 'cat", "column 9: the quote ' is not closed"),
        ('label = "cat', 'column 9: the quote " is not closed'),
        ("`x = 1", "column 1: the quote ` is not closed"),
        ("label = 'cat' label = 'dog'", "column 15: expected `and`, `or` or the end"),
        ("(label = 'cat'", r"column 15: expected `\)`"),
        ("label = 'cat')", "column 14"),
        ("label in ()", "column 11: expected a value"),
        ("label in ('a',)", "column 15: expected a value"),
        ("label in 'a'", r"column 10: expected `\(`"),
        ("label in ('a' 'b')", r"column 15: expected `,` or `\)`"),
        ("label not 'a'", "column 11: expected `in` or `like`"),
        ("label like 5", "column 12: expected a quoted pattern"),
        ("label is 'x'", "column 10: expected `null`"),
        ("label = 5", "column 9: label is text; put quotes around 5"),
        ("id in ('a', 5)", "column 13: id is text"),
        ("year = null", "column 8: nothing compares with null; write `is null`"),
        ("year in (1, null)", "column 13: nothing compares with null"),
        ("ok < true", "column 6: true and false have no order"),
        ("x = 1e999", "column 5: 1e999 is too large"),
        ("x = 1; drop table items", r"column 6: unexpected character ';'"),
        ("x = 1 -- y", "column 7: unexpected character '-'"),
        ("x = $1", "unexpected character '\\$'"),
        ("and = 1", "column 1: expected a field name"),
        ("x.in = 1", "column 3: expected a field name"),
        ('`a"b` = 1', "column 1: a filter cannot name"),
        ("`a\\b` = 1", "column 1: a filter cannot name"),
        ("`a\0b` = 1", "column 1: a filter cannot name"),
        ("exists()", "column 8: expected a field name"),
        ("x = '\ud800'", "surrogate"),
        ("(" * 65 + "x = 1" + ")" * 65, "column 65: nested more than 64 deep"),
        ("not " * 5000 + "x", "too many"),
        ("not " * 70 + "x = 1", "nested more than 64 deep"),
        ("x in (" + "1," * 1000 + "1)", "a list holds at most 1000"),
        ("x = '" + "y" * 20_000 + "'", "the limit is 16384"),
    ],
)
def test_bad_filters_say_where_and_what(where: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse(where)


def test_long_filters_within_the_limits_run(rows: sqlite3.Connection) -> None:
    assert selected(rows, " or ".join(["x=1"] * 2000 + ["id='a'"])) == "a"
    assert selected(rows, " and ".join(["id='a'"] * 1200)) == "a"
    assert selected(rows, "(" * 63 + "id = 'a'" + ")" * 63) == "a"
    assert selected(rows, "not " * 62 + "id = 'a'") == "a"
    assert selected(rows, nested(25)) == "a"
    assert selected(rows, "not (" + nested(24) + ")") == "bcdef"


def nested(levels: int) -> str:
    where = "id = 'a'"
    for level in range(levels):
        where = f"x = 1 or ({where})" if level % 2 else f"id = 'a' and ({where})"
    return where


def test_and_and_or_nested_too_deep_for_the_database_are_refused(rows: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError) as caught:
        selected(rows, nested(63))
    assert isinstance(translated(caught.value), InvalidArgument)
    assert selected(rows, "year in (" + ",".join(map(str, range(1021, 2021))) + ")") == "a"


@pytest.mark.parametrize(
    "text",
    ["' OR 1=1 --", "'; DROP TABLE items; --", "') OR ('1'='1", '"', "$.x", "%", "\\", "?", ":x", "\0", "`", "''"],
)
def test_values_and_names_never_become_sql(rows: sqlite3.Connection, text: str) -> None:
    quoted = text.replace("'", "''")
    assert selected(rows, f"label = '{quoted}'") == ""
    assert selected(rows, f"label in ('{quoted}')") == ""
    sql, values = where_clause(parse(f"label = '{quoted}' or x = '{quoted}'"))
    assert text not in sql or text in "?'\"$.x"
    assert text in values
    name = text.replace("`", "``")
    try:
        assert selected(rows, f"`{name}` = 1 or `{name}` in (1) or exists(`{name}`)") == ""
    except InvalidArgument as error:
        assert "cannot name" in error.message  # noqa: PT017  # either nothing is found or this
    assert rows.execute("SELECT count(*) FROM items").fetchone() == (2 * len(ITEMS),)


def test_the_tree_is_what_was_written() -> None:
    label, year = Field("label"), Field("", ("exif", "year"))
    assert parse("label = 'x' and (exif.year > 5 or not label in ('a', 'b'))") == And(
        (Compare(label, "=", "x"), Or((Compare(year, ">", 5), Not(In(label, ("a", "b"))))))
    )


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, -2.0, 1e300, 2**63, -(2**63)]),
    st.sampled_from(["a", "B", "", "it's", "%", "é", "1"]),
)
NAMES = st.sampled_from(["x", "y", "x.y", "`odd name`", "exists", "label", "id"])


def written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def comparisons(name: str, value: object, values: list[object], form: int) -> str:
    if name in {"label", "id"}:
        value, values = str(value), [str(each) for each in values]
    order = "=" if isinstance(value, bool) else ["=", "!=", "<", "<=", ">", ">="][form % 6]
    listed = ", ".join(map(written, values))
    return [
        f"{name} {order} {written(value)}",
        f"{name} in ({listed})",
        f"{name} not in ({listed})",
        f"{name} is null",
        f"{name} is not null",
        f"{name} like {written(str(value))}",
        f"{name} not like {written(str(value) + '%')}",
        f"exists({name})",
    ][form % 8]


LEAVES = st.builds(comparisons, NAMES, SCALARS, st.lists(SCALARS, min_size=1, max_size=3), st.integers(0, 47))
WHERES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
    ),
    max_leaves=6,
)
VALUES = st.one_of(SCALARS, st.none(), st.lists(SCALARS, max_size=2), st.dictionaries(st.just("y"), SCALARS))
ATTRIBUTES = st.dictionaries(st.sampled_from(["x", "y", "odd name", "exists", "label"]), VALUES)


@pytest.fixture(scope="module")
def two() -> Iterator[list[sqlite3.Connection]]:
    """The same without and with indexes, empty."""
    both = [database([]), database([], ["x", "y", "x.y", "exists"])]
    yield both
    for db in both:
        db.close()


@given(WHERES, st.lists(st.tuples(st.none() | st.sampled_from(["a", "1", "it's"]), ATTRIBUTES), max_size=4))
@example("not (x != 1 or x.y is null)", [(None, {"x": {"y": None}})])
@example("x like 'a%' or not x not like '1%'", [("1", {"x": "A"}), (None, {"x": 1}), (None, {"x": "1"})])
def test_sql_agrees_with_python(
    two: list[sqlite3.Connection], where: str, drawn: list[tuple[str | None, dict[str, object]]]
) -> None:
    items = [NewItem(str(i), VECTOR, label, attributes) for i, (label, attributes) in enumerate(drawn)]
    for db in two:
        db.execute("DELETE FROM items")
        fill(db, "c", items)
        assert selected(db, where) == "".join(item.id for item in items if matches(parse(where), item))


LIKES = ["", "a", "A", "ab", "aB!", "b", "z", "Z{", "é", "éa", "\ud7ff", "\ud7ffa", "\ue000", "\U0010ffff", "[", "`"]


@pytest.mark.parametrize("beginning", LIKES)
def test_the_bounds_of_like_leave_out_nothing(beginning: str) -> None:
    values = [*LIKES, *(f"{each}{more}" for each in LIKES for more in ("b", "%", "\U0010ffff", "\U0010ffffa"))]
    items = [NewItem(f"{i:03}", VECTOR, attributes={"x": value}) for i, value in enumerate(values)]
    with closing(database(items, ["x"])) as db:
        for pattern in (beginning, f"{beginning}%", f"{beginning}_", f"{beginning}%b"):
            expected = [item.id for item in items if matches(Like(Field("", ("x",)), pattern), item)]
            assert sorted(i for (i,) in query(db, f"x like '{pattern}'")) == expected


@pytest.mark.parametrize(
    "where",
    [
        "year = 2020",
        "year in (1, 2, 'x')",
        "year > 5 and year <= 7",
        "year != 5",
        "year is not null",
        "exists(year)",
        "not not exists(year)",
        "ok = true",
        "ok in (true, false)",
        "exif.camera like 'canon%'",
        "exif.camera >= 'Canon'",
        "year = 1 or exif.camera = 'x'",
    ],
)
def test_declared_attributes_are_found_by_their_index_and_no_json_is_read(where: str) -> None:
    with closing(database(ITEMS, DECLARED)) as db:
        plan = [row[3] for row in query(db, where, "EXPLAIN QUERY PLAN SELECT vid")]
        assert any("INDEX items_attribute_" in step for step in plan), plan
        assert not any("items_by_label" in step or step.startswith("SCAN items") for step in plan), plan
        if " or " not in where and "in (1" not in where:
            program = query(db, where, "EXPLAIN SELECT vid").fetchall()
            assert not any("json" in str(step[5]) for step in program)


def test_a_rare_label_is_preferred_to_a_range() -> None:
    with closing(database(ITEMS, DECLARED)) as db:
        (plan,) = query(db, "label = 'cat' and year >= 5", "EXPLAIN QUERY PLAN SELECT vid")
        assert "items_by_label (collection_id=? AND label=?)" in plan[3]


def test_attribute_indexes_come_and_go_with_the_collections_that_declare_them() -> None:
    with closing(database([])) as db:

        def there() -> int:
            found = db.execute("SELECT count(*) FROM sqlite_schema WHERE name GLOB 'items_attribute_*'").fetchone()
            return int(found[0])

        create(db, "one", ["x", "y.z"])
        create(db, "two", ["y.z", "x.y-z_0"])
        assert there() == 3
        assert catalog.alter(db, "one", None, ["x"]).indexed == ("x",)
        assert there() == 3
        catalog.delete(db, "two")
        assert there() == 1
        catalog.alter(db, "one", "exact", [])
        assert (there(), catalog.find(db, "one").index) == (0, "exact")
        left = db.execute("SELECT count(*) FROM sqlite_stat1 WHERE idx GLOB 'items_attribute_*'").fetchone()
        assert left == (0,)


@pytest.mark.parametrize(
    "where", ["label = 'cat'", "year > 0", "year = 2020 or ok = true", "not exists(ok)", "id > 'b'"]
)
def test_candidates_are_checked_by_row(rows: sqlite3.Connection, where: str) -> None:
    collection = catalog.find(rows, "c")
    condition = where_clause(parse(where), collection.indexed)
    asked = np.array([1, 3, 5, 6, 8, 12, 999], np.int64)  # those past 6 are of the other collection, or nobody's
    steps: list[str] = []
    rows.set_trace_callback(steps.append)
    found = matching_among(rows, collection.id, condition, asked)
    rows.set_trace_callback(None)
    expected = [vid for vid, item in enumerate(ITEMS, 1) if vid in asked and matches(parse(where), item)]
    assert found.dtype == np.int64
    assert found.tolist() == expected
    plan = [row[3] for row in rows.execute(f"EXPLAIN QUERY PLAN {steps[0]}")]
    assert "SEARCH items USING INTEGER PRIMARY KEY (rowid=?)" in plan[0]
    assert not any("items_" in step for step in plan)
    assert matching_among(rows, collection.id, condition, asked[:0]).tolist() == []
    assert ids_by_vid(rows, [2, 5, 999]) == {2: "b", 5: "e"}
