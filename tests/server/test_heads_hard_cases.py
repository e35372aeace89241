"""Heads asked for what is hard, through the client: the right answer, or a coded error that says what to do."""

from __future__ import annotations

import asyncio
import threading
import unicodedata
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise import AsyncClient, Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise.sync import Collection
from likewise_server import heads
from support.pictures import digit_images, photograph_jpegs
from support.server import serving

DIM = 16
KINDS = [kind for kind in heads.kinds() if kind != "auto"] + ["auto"]


def around(centres: NDArray[np.float32], each: int, seed: int = 0) -> NDArray[np.float32]:
    """`each` vectors near each centre (c, DIM), class after class."""
    rng = np.random.default_rng(seed)
    return (np.repeat(centres, each, axis=0) + 0.05 * rng.normal(size=(each * len(centres), DIM))).astype(np.float32)


def centres(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(n, DIM)).astype(np.float32)


@pytest.fixture
def plain(client: Client) -> Iterator[Collection]:
    """An empty collection of vectors from elsewhere."""
    made = client.create_collection(f"plain-{uuid.uuid4().hex[:8]}", dim=DIM)
    yield made
    client.delete_collection(made.name)


@pytest.mark.parametrize("kind", KINDS)
def test_one_example_a_class(plain: Collection, kind: str) -> None:
    head = plain.train_head("h", kind, vectors=centres(5), labels=list("abcde"))
    assert head.metrics.accuracy is None
    assert head.metrics.note
    assert head.class_counts == dict.fromkeys("abcde", 1)
    answers = plain.classify(vectors=around(centres(5), 4), head="h")
    assert [a.label for a in answers] == [label for label in "abcde" for _ in range(4)]
    assert all(sum(a.probabilities.values()) == pytest.approx(1, abs=1e-5) for a in answers)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_accepted_or_not(plain: Collection, kind: str) -> None:
    head = plain.train_head("h", kind, vectors=around(centres(1), 8), labels=["only"] * 8)
    assert head.classes == ("only",)
    assert any("one class" in warning for warning in head.warnings)
    own, other = plain.classify(vectors=np.stack([centres(1)[0], -centres(1)[0]]), head="h")
    assert (own.label, other.label, other.best, other.score) == ("only", None, "only", 1.0)
    assert plain.classify(vectors=-centres(1), head="h", reject=False)[0].label == "only"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_in_two_classes(collection: Collection, kind: str) -> None:
    images, names = digit_images(3, classes=2)
    head = collection.train_head("h", kind, images=[*images, images[0]], labels=[*names, "1"])
    assert any("more than one class" in warning for warning in head.warnings), head.warnings
    torn = collection.classify([images[0]], head="h", neighbours=2)[0]
    assert {n.label for n in torn.neighbours} == {"0", "1"}, "both are shown"
    assert [n.similarity for n in torn.neighbours] == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_against_two_hundred(plain: Collection, kind: str) -> None:
    rows = np.concatenate([around(centres(2)[:1], 200), centres(2)[1:]])
    # A logistic regression goes by how often a class is seen, and is told not to.
    options: dict[str, Any] = {"class_weight": "balanced"} if kind == "logreg" else {}
    head = plain.train_head("h", kind, vectors=rows, labels=["many"] * 200 + ["one"], **options)
    assert any("unequal size: 1 of 'one', 200 of 'many'" in warning for warning in head.warnings)
    answers = plain.classify(vectors=around(centres(2), 3, seed=2), head="h")
    assert [a.best for a in answers] == ["many"] * 3 + ["one"] * 3
    assert head.class_counts == {"many": 200, "one": 1}


@pytest.mark.parametrize("kind", ["ncm", "ridge", "auto"])
def test_a_thousand_classes(plain: Collection, kind: str) -> None:
    names = [f"class {i:04}" for i in range(1000)]
    rows = around(centres(1000), 2)
    labels = [name for name in names for _ in range(2)]
    plain.add_vectors([f"i{i}" for i in range(2000)], rows, labels=labels)
    head = plain.train_head("h", kind)
    assert head.classes == tuple(names)
    answers = plain.classify(ids=[f"i{i}" for i in range(0, 2000, 40)], head="h")
    assert np.mean([a.best == labels[i] for i, a in zip(range(0, 2000, 40), answers, strict=True)]) > 0.8
    assert len(answers[0].probabilities) == 1000
    found = plain.evaluate("h")
    assert found.confusion.shape == (1001, 1001)
    assert (found.items, found.training_items, len(found.classes)) == (2000, 2000, 1000)


UNICODE = [
    "🐈‍⬛",  # several code points, one sign
    "חתול",
    "قطة \u200fRTL",  # with a mark of direction
    unicodedata.normalize("NFC", "café"),
    unicodedata.normalize("NFD", "café"),
    "<script>alert('x')</script>",
    "a\tb\nc",
    "long " * 2000,
]


@pytest.mark.parametrize("kind", ["ncm", "auto"])
def test_labels_in_any_script(plain: Collection, kind: str) -> None:
    labels = [label for label in UNICODE for _ in range(4)]
    rows = around(centres(len(UNICODE)), 4)
    outcomes = plain.add_vectors([f"i{i}" for i in range(len(rows))], rows, labels=labels)
    assert not outcomes.errors
    head = plain.train_head("h", kind)
    assert sorted(head.classes) == sorted(UNICODE), "as they were given, composed or not"
    assert [a.label for a in plain.classify(vectors=rows, head="h")] == labels
    assert [c.label for c in plain.evaluate("h").classes if c.recall == 1] == list(head.classes)
    assert plain.head("h").class_counts == dict.fromkeys(UNICODE, 4)


@pytest.mark.parametrize("label", ["", "   "])
def test_an_empty_label_is_refused(plain: Collection, label: str) -> None:
    with pytest.raises(InvalidArgument, match="label 1"):
        plain.train_head("h", "ncm", vectors=centres(2), labels=["a", label])


def test_labels_and_classes_that_are_not_there(plain: Collection) -> None:
    with pytest.raises(FailedPrecondition, match="no labelled items: add items"):
        plain.train_head("h")
    plain.add_vectors(list("abcd"), around(centres(2), 2), labels=["x", "x", "y", "y"])
    with pytest.raises(FailedPrecondition, match="that match"):
        plain.train_head("h", where="label = 'nobody'")
    with pytest.raises(InvalidArgument, match=r"'prior'.*'nobody'"):
        plain.train_head("h", "ncm", prior={"x": 1, "y": 1, "nobody": 1})
    with pytest.raises(InvalidArgument, match=r"'prior'.*'y'"):
        plain.train_head("h", "ncm", prior={"x": 1})
    with pytest.raises(InvalidArgument, match="kind"):
        plain.train_head("h", "forest")
    with pytest.raises(NotFound, match="no head 'h'"):
        plain.classify(ids=["a"], head="h")
    plain.train_head("h", "ncm")
    with pytest.raises(FailedPrecondition, match="that match"):
        plain.evaluate("h", where="label = 'nobody'")
    plain.add_vectors(["e"], centres(3)[2:], labels=["new"])
    found = plain.evaluate("h", where="label = 'new'")
    assert (found.items, found.known_items, found.accuracy) == (1, 0, None)


def test_a_head_of_another_space(client: Client, plain: Collection, collection: Collection) -> None:
    plain.train_head("h", "ncm", vectors=centres(2), labels=["x", "y"])
    with pytest.raises(FailedPrecondition, match=r"another.*external:16"):
        plain.classify(vectors=centres(1), head="h", fingerprint="another")
    with pytest.raises(FailedPrecondition, match="another"):
        plain.train_head("g", "ncm", vectors=centres(2), labels=["x", "y"], fingerprint="another")
    with pytest.raises(FailedPrecondition, match="16"):
        plain.classify(vectors=np.ones((1, 3)), head="h")
    with pytest.raises(FailedPrecondition, match="send vectors"):
        plain.classify(photograph_jpegs()[:1], head="h")
    collection.add(photograph_jpegs()[:2], labels=["x", "y"])
    with pytest.raises(FailedPrecondition, match=f"{collection.fingerprint}.*external:16"):
        plain.evaluate("h", on=collection.name)
    client.delete_collection(plain.name)
    again = client.create_collection(plain.name)
    with pytest.raises(NotFound, match="no head 'h'"):
        again.classify(photograph_jpegs()[:1], head="h")
    assert again.train_head("h", "ncm", images=photograph_jpegs()[:2], labels=["x", "y"]).version == 1


async def test_a_head_whose_space_is_not_its_collections(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as lw:
        made = await lw.create_collection("c", dim=DIM)
        await made.train_head("h", "ncm", vectors=centres(2), labels=["x", "y"])
        store = running.engine.store
        row = store.get_head("c", "h")
        store.save_head("c", "h", row.kind, {**row.meta, "fingerprint": "before"}, row.blob)
        for call in (
            made.classify(vectors=centres(1), head="h"),
            made.evaluate("h"),
            made.update_head("h", remove=["example:0"]),
        ):
            with pytest.raises(FailedPrecondition, match=r"space before.*space external:16: train it again"):
                await call
        assert [head.version for head in await made.heads()] == [1, 2], "it hides no other, and can be deleted"
        await made.delete_head("h", 2)
        assert (await made.classify(vectors=centres(2), head="h"))[0].label == "x"


async def test_the_old_version_answers_while_the_new_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, train = threading.Event(), threading.Event(), heads.train

    def held(*arguments: Any, **options: Any) -> heads.TrainedHead:
        begun.set()
        assert go_on.wait(30)
        return train(*arguments, **options)

    async with serving(tmp_path / "data") as running, AsyncClient(f"127.0.0.1:{running.port}") as lw:
        made = await lw.create_collection("c", dim=DIM)
        await made.train_head("h", "ncm", vectors=centres(2), labels=["x", "y"])
        monkeypatch.setattr(heads, "train", held)
        training = asyncio.create_task(made.train_head("h", "ncm", vectors=centres(2), labels=["new", "y"]))
        try:
            assert await asyncio.to_thread(begun.wait, 30)
            during = (await made.classify(vectors=centres(1), head="h"))[0]
        finally:
            go_on.set()
        assert (during.label, during.head_version) == ("x", 1)
        assert (await training).version == 2
        after = (await made.classify(vectors=centres(1), head="h"))[0]
        assert (after.label, after.head_version) == ("new", 2)
