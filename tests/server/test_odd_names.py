"""Ids, labels, names and filters in any Unicode: they work or are refused, name no files, and are never SQL."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract.store_model import Model
from likewise import Client
from likewise.errors import InvalidArgument as Refused
from likewise_server.errors import InvalidArgument
from likewise_server.store import NewItem, Store, open_store
from support.messages import Maker
from support.names import NAMES
from support.server import ServerProcess, start_server

OURS = re.compile(r"[a-z0-9._-]{1,80}")  # what we call files and folders
SPACE = "external:2"


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose data lie deep in a folder of their own, where a path that leads out of them would show."""
    folder = tmp_path_factory.mktemp("fence") / "a" / "b" / "c"
    with start_server(folder / "data", "--precision", "fp32") as running:
        yield running


@pytest.fixture(scope="module")
def lw(fenced: ServerProcess) -> Iterator[Client]:
    with Client(fenced.address) as client:
        yield client


def is_name(name: str) -> bool:
    """Say what docs/security.md says of names of collections and heads."""
    return 1 <= len(name) <= 128 and not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def is_text(text: str) -> bool:
    """And of ids and labels."""
    return "\0" not in text and 1 <= len(text.encode()) <= 1024


def test_names_of_all_kinds_work_or_are_refused_and_name_no_files(lw: Client, fenced: ServerProcess) -> None:
    top = fenced.data.parents[3]
    around = {path for path in top.rglob("*") if fenced.data not in path.parents}
    refused: list[str] = []
    for name in dict.fromkeys(NAMES):
        if not is_name(name):
            with pytest.raises(Refused, match="name"):
                lw.create_collection(name, dim=2)
            refused.append(name)
            continue
        kept = lw.create_collection(name, dim=2)
        kept.add_vectors([f"{i}" for i in range(6)], np.eye(2)[[0, 1] * 3] + 0.1, labels=["x", "y"] * 3)
        head = kept.train_head(name, kind="ncm")
        assert (head.name, head.collection) == (name, name)
        assert kept.classify(vectors=np.eye(2)[:1], head=name)[0].label == "x"
        assert lw.collection(name).count() == 6
    assert {"", "\0", "a\nb"} <= set(refused)
    listed = {info.name for info in lw.collections()}
    assert listed == {name for name in NAMES if is_name(name)}
    assert not kept.check(repair=True).problems
    inside = [path.relative_to(fenced.data) for path in fenced.data.rglob("*")]
    assert inside
    for path in inside:
        assert all(OURS.fullmatch(part) for part in path.parts), path
    assert {path for path in top.rglob("*") if fenced.data not in path.parents} == around
    for name in listed:
        lw.delete_collection(name)
    assert not lw.collections()


def test_ids_labels_and_attributes_of_all_kinds(lw: Client, fenced: ServerProcess) -> None:
    kept = lw.create_collection("texts", dim=2)
    texts = list(dict.fromkeys(NAMES))
    done = kept.add_vectors(
        texts, np.ones((len(texts), 2)), labels=texts, attributes=[{text: text, "a": {text: [text]}} for text in texts]
    )
    sound = [text for text in texts if is_text(text)]
    assert set(done.errors) == set(texts) - set(sound)
    assert all(isinstance(error, Refused) for error in done.errors.values())
    for text, item in zip(sound, kept.get(sound), strict=True):
        assert item is not None
        assert (item.id, item.label) == (text, text)
        assert item.attributes == {text: text, "a": {text: [text]}}
        assert [hit.id for hit in kept.search(vector=np.ones(2), k=9, where=f"id = {quoted(text)}")] == [text]
    assert kept.delete(sound) == len(sound)
    assert kept.count() == 0
    assert all(OURS.fullmatch(path.name) for path in fenced.data.rglob("*"))
    lw.delete_collection("texts")


def test_half_a_surrogate_pair_is_refused(lw: Client) -> None:
    with pytest.raises((Refused, ValueError)):
        lw.create_collection("\ud800", dim=2)
    kept = lw.create_collection("halves", dim=2)
    with pytest.raises((Refused, ValueError)):
        kept.count("label = '\udfff'")
    with pytest.raises((Refused, ValueError)):
        kept.get(["\ud800"])
    lw.delete_collection("halves")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data")
    yield opened
    opened.close()


def hostile(rng: random.Random) -> str:
    """Return a text that closes quotes, opens comments, or is made of such."""
    pieces = [
        *NAMES[11:70],
        "')",
        "' or ''='",
        "\"'`",
        "--",
        ";",
        "?",
        "?1",
        ":a",
        "@a",
        "json_extract(attributes, '$')",
    ]
    made = "".join(rng.choice(pieces) for _ in range(rng.choice((1, 1, 2, 3))))
    return made.replace("\0", "").replace("x" * 200, "x")[:120] or "x"


def filled(store: Store, rng: random.Random) -> tuple[Model, list[str]]:
    """Store items whose texts and attribute names are hostile; some of the names are declared as indexed."""
    texts = list(dict.fromkeys(hostile(rng) for _ in range(90)))
    model = Model("dot")
    store.create_collection("c", dim=2, metric="dot", fingerprint=SPACE, indexed=("n", "a-b", "x_1.y"))
    store.create_collection("other", dim=2, metric="dot", fingerprint=SPACE)
    items = [
        NewItem(
            id=text,
            vector=np.array([1, number], np.float32),
            label=rng.choice([None, rng.choice(texts), text]),
            attributes={
                rng.choice(texts): rng.choice(texts),
                "n": rng.choice(texts),
                "a-b": number,
                "x_1": {"y": text},
            },
            uri=rng.choice(texts),
        )
        for number, text in enumerate(texts)
    ]
    for item in items:
        model.upsert(item)
    for name in ("c", "other"):
        assert all(isinstance(each, str) for each in store.upsert(name, items, fingerprint=SPACE))
    return model, texts


def found(store: Store, where: str) -> set[str]:
    items, token = store.list_items("c", where=where, page_size=1000)
    assert not token
    assert store.count("c", where) == len(items)
    return {item.id for item in items}


def test_values_in_filters_are_values(store: Store) -> None:
    rng = random.Random(6)
    model, texts = filled(store, rng)
    items = list(model.items.values())
    for _ in range(1000):
        text, field = rng.choice([*texts, hostile(rng)]), rng.choice(["id", "label", "uri"])
        quote = rng.choice("'\"")
        literal = quote + text.replace(quote, 2 * quote) + quote
        # Not by our parser: what the words say.
        assert found(store, f"{field} = {literal}") == {item.id for item in items if getattr(item, field) == text}
        assert found(store, f"n = {literal}") == {item.id for item in items if item.attributes["n"] == text}
        assert found(store, f"x_1.y in ({literal}, 7)") == {item.id for item in items if item.id == text}


def test_attribute_names_in_filters_are_names(store: Store) -> None:
    rng = random.Random(7)
    model, texts = filled(store, rng)
    refused = 0
    for _ in range(1500):
        text = rng.choice([*texts, hostile(rng)])
        where = f"exists(`{text.replace('`', '``')}`)"
        if any(c in '"\\' or c < " " for c in text):
            with pytest.raises(InvalidArgument, match="cannot name an attribute"):
                store.count("c", where)
            refused += 1
        else:
            assert found(store, where) == {item.id for item in model.items.values() if text in item.attributes}, where
    assert 0 < refused < 1200


def test_whole_expressions_answer_as_python_does_and_change_nothing(store: Store) -> None:
    rng = random.Random(8)
    model, texts = filled(store, rng)
    maker = Maker(rng, {}, [b""], "vector")
    answered = 0
    for number in range(3000):
        where = (maker.where, lambda: hostile(rng), lambda: f"label = '{hostile(rng)}' or n = '{hostile(rng)}'")[
            number % 3
        ]()
        try:
            ids = found(store, where)
        except InvalidArgument:
            continue
        assert ids == {item.id for item in model.matching(where)}, where
        answered += 1
    assert answered > 200
    assert found(store, "") == set(texts)
    assert store.count("other") == len(texts)
    assert store.fsck().ok
