"""The engine's work on labels, on a store that can be meddled with while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from likewise_server.engine import labels, samples, sources
from likewise_server.engine.classification import StoredHead
from likewise_server.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from likewise_server.heads import TrainedHead, train
from likewise_server.store import Item, NewItem, NewLabel
from likewise_server.store.embedded import EmbeddedStore

DIM = 8


class Meddled(EmbeddedStore):
    """Calls `meddle` after each page that is read with vectors: others write between a read and a write."""

    meddle: Callable[[list[Item]], None] | None = None

    def list_items(self, *arguments: Any, **options: Any) -> tuple[list[Item], str]:
        items, token = super().list_items(*arguments, **options)
        if self.meddle and options.get("vectors"):
            self.meddle(items)
        return items, token


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Meddled]:
    with Meddled(tmp_path) as opened:
        opened.create_collection("c", dim=DIM, fingerprint="f")
        yield opened


def around(label: int, n: int, seed: int, spread: float = 0.1) -> NDArray[np.float32]:
    rows = spread * np.random.default_rng(seed).normal(size=(n, DIM))
    rows[:, label] += 1
    return rows.astype(np.float32)


def put(store: EmbeddedStore, prefix: str, rows: NDArray[np.float32], label: str | None, **extra: Any) -> None:
    items = [NewItem(f"{prefix}{i:04}", row, label, extra) for i, row in enumerate(rows)]
    assert set(store.upsert("c", items, fingerprint="f")) == {"created"}


def head_of(store: EmbeddedStore) -> StoredHead:
    found = store.labelled("c")
    head: TrainedHead = train(found.vectors, found.labels, found.ids, kind="ridge")
    row = store.save_head("c", "h", head.kind, {"head": head.meta(), "fingerprint": "f"}, head.to_bytes())
    return StoredHead(row, head, store.get_collection("c"))


@pytest.fixture
def three(store: Meddled) -> StoredHead:
    """Three classes, labelled; 40 items of each without a label, and 30 that are like none of them."""
    for label in range(3):
        put(store, f"known{label}-", around(label, 15, label), f"class {label}")
        put(store, f"new{label}-", around(label, 40, 10 + label), None, shelf=label)
    put(store, "strange-", around(6, 30, 20), None)
    return head_of(store)


def told(events: Iterator[list[labels.Pseudo]]) -> list[labels.Pseudo]:
    return [each for part in events for each in part]


def test_a_head_labels_what_it_is_sure_of_and_says_so(store: Meddled, three: StoredHead) -> None:
    before = {item.id: item for item in store.list_items("c", page_size=1000, vectors=True)[0]}
    dry = told(labels.pseudo_label(store, "c", three, dry_run=True))
    assert store.count("c", "label is null") == 150
    found = told(labels.pseudo_label(store, "c", three))
    assert found == dry
    assert [each.id for each in found] == sorted(item.id for item in before.values() if item.label is None)
    for each in found:
        (item,) = store.get("c", [each.id], vectors=True)
        assert item is not None
        np.testing.assert_array_equal(item.vector, before[each.id].vector)
        if each.taken:
            assert each.score >= 0.9
            assert item.label == each.label == f"class {item.attributes['shelf']}"
            assert item.attributes["label_source"] == "head h v1 of c"
            assert item.attributes["label_score"] == pytest.approx(each.score, abs=1e-6)
            assert each.reason == ""
        else:
            assert each.reason
            assert (item.label, item.attributes) == (None, before[each.id].attributes)
    strange = [each for each in found if each.id.startswith("strange")]
    assert not any(each.taken for each in strange)
    assert any("unknown: its novelty" in each.reason for each in strange)
    taken = [each for each in found if each.taken]
    assert len(taken) > 60
    assert store.count("c", "exists(label_source) and label_score >= 0.9") == len(taken)
    again = told(labels.pseudo_label(store, "c", three))
    assert {each.id for each in again} == {each.id for each in found if not each.taken}
    # Undone by hand: the label goes, and what was said of it as well.
    changed, missing = labels.set_labels(store, "c", [(each.id, None) for each in taken])
    assert (changed, missing) == (len(taken), [])
    assert {i.id: (i.label, i.attributes) for i in store.list_items("c", page_size=1000)[0]} == {
        i.id: (i.label, i.attributes) for i in before.values()
    }


def test_the_least_score_and_the_cap_decide(store: Meddled, three: StoredHead) -> None:
    everything = told(labels.pseudo_label(store, "c", three, min_score=0.0, dry_run=True))
    sure = [each for each in everything if each.taken]
    strict = sorted(each.score for each in sure)[len(sure) // 2]
    found = told(labels.pseudo_label(store, "c", three, min_score=strict, dry_run=True))
    assert {each.id for each in found if each.taken} == {each.id for each in sure if each.score >= strict}
    assert any(f"is under {strict:g}" in each.reason for each in found)
    capped = told(labels.pseudo_label(store, "c", three, min_score=0.0, max_per_class=7))
    for label in range(3):
        own = sorted((each for each in sure if each.label == f"class {label}"), key=lambda e: (-e.score, e.id))
        taken = {each.id for each in capped if each.taken and each.label == f"class {label}"}
        assert taken == {each.id for each in own[:7]}
    assert any("not among the surest 7 of its class" in each.reason for each in capped)
    assert store.count("c", "exists(label_source)") == 21
    filtered = told(labels.pseudo_label(store, "c", three, where="shelf = 1 or shelf = 2", dry_run=True))
    assert {each.id[:5] for each in filtered} == {"new1-", "new2-"}
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidArgument, match="give a probability"):
            told(labels.pseudo_label(store, "c", three, min_score=bad))


def test_what_changes_between_reading_and_writing_is_not_overwritten(store: Meddled, three: StoredHead) -> None:
    sure = sorted(each.id for each in told(labels.pseudo_label(store, "c", three, dry_run=True)) if each.taken)
    labelled, moved, renamed, gone, back, *rest = sure

    def meddle(items: list[Item]) -> None:
        store.meddle = None
        by_id = {item.id: item for item in items}
        store.relabel("c", [NewLabel(labelled, "by hand")])
        store.upsert("c", [NewItem(moved, around(5, 1, 0)[0], None, by_id[moved].attributes)], fingerprint="f")
        vector = by_id[renamed].vector
        assert vector is not None
        store.upsert("c", [NewItem(renamed, vector, None, {"shelf": 9})], fingerprint="f")
        store.delete("c", [gone])
        store.relabel("c", [NewLabel(back, "by hand")])
        store.relabel("c", [NewLabel(back, None)])  # what it was again: its label may be given

    store.meddle = meddle
    found = {each.id: each for each in told(labels.pseudo_label(store, "c", three))}
    for item_id in (labelled, moved, renamed):
        assert not found[item_id].taken
        assert "has changed since it was read" in found[item_id].reason
    assert not found[gone].taken
    assert "no item" in found[gone].reason
    assert all(found[item_id].taken for item_id in (back, *rest))
    stored = {item.id: item for item in store.get("c", [labelled, moved, renamed, back]) if item}
    assert [stored[i].label for i in (labelled, moved, renamed)] == ["by hand", None, None]
    assert not any("label_source" in stored[i].attributes for i in (labelled, moved, renamed))
    assert stored[back].attributes["label_source"] == "head h v1 of c"


def test_pages_are_small_and_stop_at_the_deadline(
    store: Meddled, three: StoredHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAGE", 10)
    parts = list(labels.pseudo_label(store, "c", three, dry_run=True))
    assert parts[0] == []
    assert max(map(len, parts)) == 10
    ids = [each.id for part in parts for each in part]
    assert ids == sorted(ids)
    assert len(ids) == 150
    seen: list[int] = []
    deadline = time.monotonic() + 1000

    def meddle(items: list[Item]) -> None:
        seen.append(len(items))
        if len(seen) == 3:
            monkeypatch.setattr(samples, "time", SimpleNamespace(monotonic=lambda: deadline + 1))

    store.meddle = meddle
    done = labels.pseudo_label(store, "c", three, min_score=0.0, deadline=deadline)
    written = [each for _ in range(4) for each in next(done) if each.taken]
    with pytest.raises(DeadlineExceeded):
        next(done)
    assert seen == [10, 10, 10]
    assert len(written) == store.count("c", "exists(label_source)") > 0


def test_zero_vectors_are_left_alone(tmp_path: Path) -> None:
    with Meddled(tmp_path / "l2") as store:
        store.create_collection("c", dim=DIM, metric="l2", fingerprint="f")
        for label in range(2):
            put(store, f"known{label}-", around(label, 12, label), f"class {label}")
        put(store, "zero-", np.zeros((1, DIM), np.float32), None)
        put(store, "new-", around(0, 3, 9), None)
        head = head_of(store)
        found = {each.id: each for each in told(labels.pseudo_label(store, "c", head, min_score=0.0))}
        assert "zero" in found["zero-0000"].reason
        assert any(each.taken for each in found.values())
        put(store, "flat-", np.zeros((1, DIM), np.float32), "class 0")
        review = labels.review(store, "c")
        assert "flat-0000" not in {each.item.id for each in review.doubtful}
        labelled = store.count("c", "label is not null")
        assert f"{labelled - 1} of the {labelled} labelled items were looked at" in review.warnings
        chosen = [each for part in sources.select_source(store, "c", target_where="id like 'new%'") for each in part]
        flat = next(each for each in chosen if each.id == "flat-0000")
        assert (flat.kept, flat.reason) == (False, "its vector is zero and has no direction")
        assert [each.id for each in chosen] == sorted(each.id for each in chosen)


def test_a_head_of_another_space_labels_nothing(store: Meddled, three: StoredHead) -> None:
    store.create_collection("other", dim=DIM, fingerprint="g")
    with pytest.raises(FailedPrecondition, match="'h' is of space f, 'other' of space g"):
        told(labels.pseudo_label(store, "other", three))


def test_a_review_says_what_it_did_not_look_at(
    store: Meddled, three: StoredHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    del three
    monkeypatch.setattr(labels, "MOST_JUDGED", 30)
    monkeypatch.setattr(labels, "MOST_CHOSEN_FROM", 40)
    found = labels.review(store, "c", count=5)
    assert (found.labelled, found.unlabelled) == (45, 150)
    assert "30 of the 45 labelled items were looked at" in found.warnings
    assert "40 of the 150 unlabelled items were looked at" in found.warnings
    assert len(found.next) == 5
    again = labels.review(store, "c", count=5)
    assert [each.item.id for each in again.next] == [each.item.id for each in found.next]
    with pytest.raises(DeadlineExceeded):
        labels.review(store, "c", deadline=time.monotonic() - 1)
    with pytest.raises(InvalidArgument, match="where, column"):
        labels.review(store, "c", where="label = 'x') or (label = 'y'")


def test_a_sample_is_even_and_tells_who_belongs(store: Meddled) -> None:
    put(store, "i", around(0, 400, 0), None)
    drawn = samples.sample(store, "c", "", 100, None, asked={"i0007", "nobody"})
    numbers = [int(item.id[1:]) for item in drawn.items]
    assert len(set(numbers)) == len(numbers) == 100
    assert drawn.total == 400
    assert drawn.members == {"i0007"}
    assert 150 < np.mean(numbers) < 250
    assert samples.sample(store, "c", "id < 'i0005'", 100, None).total == 5
    assert len(samples.sample(store, "c", "id = 'x'", 100, None).vectors) == 0
