"""Labels through the client: set, reviewed, given by a head, and carried over to other pictures."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from likewise import AsyncClient, Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound
from likewise.sync import Collection
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceStub
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from support.pictures import SHARED, digit_images
from support.server import ServerProcess, start_server

DIM = 16
Floats = NDArray[np.float32]


@pytest.fixture
def vectors(client: Client) -> Iterator[Collection]:
    """An empty collection of vectors from elsewhere."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield client.create_collection(name, dim=DIM)
    client.delete_collection(name)


@pytest.fixture
def other(client: Client) -> Iterator[Collection]:
    """Another of the same space."""
    name = f"other-{uuid.uuid4().hex[:8]}"
    yield client.create_collection(name, dim=DIM)
    client.delete_collection(name)


def around(label: int, n: int, seed: int = 0) -> Floats:
    rows = 0.1 * np.random.default_rng([label, seed]).normal(size=(n, DIM))
    rows[:, label] += 1
    return rows.astype(np.float32)


def fill(collection: Collection, prefix: str, label: int, n: int, seed: int = 0, *, labelled: bool = True) -> None:
    collection.add_vectors(
        [f"{prefix}{label}-{i:03}" for i in range(n)],
        around(label, n, seed),
        labels=[f"class {label}" if labelled else None] * n,
    ).raise_for_errors()


def test_labels_change_and_nothing_else_does(vectors: Collection) -> None:
    ids = [f"i{n}" for n in range(6)]
    rows = np.concatenate([around(n, 1) for n in range(6)])
    vectors.add_vectors(ids, rows, labels=["a", "a", "b", None, None, "c"], attributes=[{"n": n} for n in range(6)])
    assert vectors.count("label = 'a'") == 2
    done = vectors.label({"i0": "b", "i1": None, "i3": "ä=ö", "i5": "c", "nobody": "x"})
    assert (done.changed, done.missing) == (3, ("nobody",))
    found = {item.id: item for item in vectors.items(vectors=True)}
    assert {i: item.label for i, item in found.items()} == {
        "i0": "b",
        "i1": None,
        "i2": "b",
        "i3": "ä=ö",
        "i4": None,
        "i5": "c",
    }
    for n, item_id in enumerate(ids):
        assert found[item_id].attributes == {"n": n}
        np.testing.assert_array_equal(found[item_id].vector, rows[n])
    assert [hit.id for hit in vectors.search(vector=rows[0], where="label = 'b'", k=9)] == ["i0", "i2"]
    assert vectors.label({"i0": "b"}).changed == 0
    assert vectors.label({}).changed == 0


def test_more_labels_than_fit_one_message(vectors: Collection) -> None:
    ids = [f"i{n:04}" for n in range(2100)]
    vectors.add_vectors(ids, np.random.default_rng(0).normal(size=(2100, DIM)))
    assert vectors.label(dict.fromkeys(ids, "all")).changed == 2100
    assert vectors.count("label = 'all'") == 2100


def test_labels_that_cannot_be_are_refused_and_none_is_written(vectors: Collection) -> None:
    fill(vectors, "i", 0, 2)
    with pytest.raises(InvalidArgument, match="'i0-001' is empty: leave it unset"):
        vectors.label({"i0-000": "new", "i0-001": ""})
    with pytest.raises(InvalidArgument, match="NUL"):
        vectors.label({"i0-000": "new", "i0-001": "a\0b"})
    with pytest.raises(InvalidArgument, match="give a text"):
        vectors.label({"i0-000": 7})  # type: ignore[dict-item]
    with pytest.raises(InvalidArgument, match="map ids to labels"):
        vectors.label(["i0-000"])  # type: ignore[arg-type]
    assert vectors.count("label = 'class 0'") == 2


def test_labels_are_durable_when_they_are_acknowledged(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", "--precision", "fp32") as server:
        with Client(server.address) as lw:
            made = lw.create_collection("c", dim=DIM)
            fill(made, "i", 0, 5)
            made.search(vector=around(0, 1)[0])
            made.label({"i0-001": "kept", "i0-002": None})
        server.kill()
    with start_server(tmp_path / "data", "--precision", "fp32") as server, Client(server.address) as lw:
        items = lw.collection("c").get(["i0-001", "i0-002"], vectors=True)
        assert [item.label for item in items if item] == ["kept", None]
        assert lw.collection("c").check().ok


def test_limits_and_codes_on_the_wire(server: ServerProcess, vectors: Collection) -> None:
    fill(vectors, "i", 0, 3)
    fill(vectors, "i", 1, 3)
    vectors.train_head("h", "ncm")
    with grpc.insecure_channel(server.address) as channel:
        items: Any = CollectionServiceStub(channel)
        heads: Any = HeadServiceStub(channel)
        name = vectors.name
        calls = [
            (items.LabelItems, cpb.LabelItemsRequest(collection=name, labels=[cpb.ItemLabel()] * 1025), "OUT_OF_RANGE"),
            (items.LabelItems, cpb.LabelItemsRequest(collection="no"), "NOT_FOUND"),
            (heads.ReviewLabels, hpb.ReviewLabelsRequest(collection=name, errors=1025), "OUT_OF_RANGE"),
            (heads.ReviewLabels, hpb.ReviewLabelsRequest(collection=name, kind="oak"), "INVALID_ARGUMENT"),
            (heads.ReviewLabels, hpb.ReviewLabelsRequest(collection="no"), "NOT_FOUND"),
            (heads.SelectSource, hpb.SelectSourceRequest(collection=name), "INVALID_ARGUMENT"),
            (heads.SelectSource, hpb.SelectSourceRequest(collection=name, target="no"), "NOT_FOUND"),
            (heads.PseudoLabel, hpb.PseudoLabelRequest(collection=name, head="no"), "NOT_FOUND"),
            (heads.PseudoLabel, hpb.PseudoLabelRequest(collection=name, head="h", min_score=2), "INVALID_ARGUMENT"),
        ]
        for method, request, code in calls:
            with pytest.raises(grpc.RpcError) as caught:
                list(answer) if hasattr(answer := method(request, timeout=30), "__iter__") else answer
            assert caught.value.code().name == code, request


def test_planted_mistakes_are_found_among_real_pictures(collection: Collection) -> None:
    images, labels = digit_images(30)
    wrong = {f"{i:03}" for i in range(0, 300, 20)}
    ids = [f"{i:03}" for i in range(300)]
    given = [str((int(label) + 4) % 10) if i in wrong else label for i, label in zip(ids, labels, strict=True)]
    unlabelled = set(ids[5::10])
    collection.add(images, ids=ids, labels=[None if i in unlabelled else g for i, g in zip(ids, given, strict=True)])
    found = collection.review_labels(errors=12, next=8, kind="lda")
    assert (found.labelled, found.unlabelled, found.kind) == (270, 30, "lda")
    assert len([doubt for doubt in found.doubtful[:8] if doubt.id in wrong]) >= 7
    for doubt in found.doubtful:
        assert doubt.label == given[int(doubt.id)]
        assert doubt.label_probability < doubt.suggested_probability <= 1
    truly = [labels[int(doubt.id)] == doubt.suggested for doubt in found.doubtful if doubt.id in wrong]
    assert np.mean(truly) > 0.7
    assert found.metrics is not None
    assert found.metrics.accuracy_low is not None
    trained = collection.train_head("same", "lda").metrics
    assert (found.metrics.accuracy, found.metrics.accuracy_low) == (trained.accuracy, trained.accuracy_low)
    assert len(found.next) == 8
    assert {each.id for each in found.next} <= unlabelled
    assert all(each.guess in "0123456789" and 0 < each.score <= 1 for each in found.next)
    assert sum(each.items for each in found.confused) >= len(found.doubtful)
    assert [each.items for each in found.confused] == sorted((each.items for each in found.confused), reverse=True)
    corrected = collection.label({doubt.id: labels[int(doubt.id)] for doubt in found.doubtful})
    assert corrected.changed >= 7
    assert (collection.train_head("same", "lda").metrics.accuracy or 0) > (trained.accuracy or 1)


def test_a_review_of_little_says_so(vectors: Collection) -> None:
    nothing = vectors.review_labels()
    assert (nothing.doubtful, nothing.next, nothing.metrics, nothing.labelled) == ((), (), None, 0)
    for label in range(3):
        fill(vectors, "new", label, 12, labelled=False)
    first = vectors.review_labels(next=3)
    assert sorted(each.id[:4] for each in first.next) == ["new0", "new1", "new2"]
    assert {(each.reason, each.guess) for each in first.next} == {("typical", "")}
    assert any("nothing is labelled yet" in warning for warning in first.warnings)
    fill(vectors, "one", 0, 4)
    single = vectors.review_labels(next=3)
    assert (single.doubtful, single.confused) == ((), ())
    assert single.metrics is not None
    assert single.metrics.accuracy is None
    assert "new0" not in {each.id[:4] for each in single.next[:2]}
    assert vectors.review_labels(where="id like 'new%'").labelled == 0


def degraded(rows: Floats) -> Floats:
    """The same in another light: moved, and stretched in the directions that tell the classes apart."""
    changed = rows * np.linspace(0.3, 2.5, DIM) + 1.5 * np.eye(DIM)[DIM - 1] - 0.5 * np.eye(DIM)[0]
    return np.asarray(changed, np.float32)


def source_and_target(vectors: Collection, other: Collection, *, labelled: int = 20) -> None:
    for label in range(4):
        fill(vectors, "s", label, 25)
        ids = [f"t{label}-{i:03}" for i in range(40)]
        labels = [f"class {label}" if i < labelled else None for i in range(40)]
        other.add_vectors(ids, degraded(around(label, 40, 5)), labels=labels)


@pytest.mark.parametrize("method", ["center", "coral", "ot"])
def test_a_head_is_carried_over_and_says_what_that_did(vectors: Collection, other: Collection, method: str) -> None:
    source_and_target(vectors, other)
    plain = vectors.train_head("plain", "ridge")
    assert plain.adaptation is None
    head = vectors.train_head("moved", "ridge", adapt=method, target=other.name)
    report = head.adaptation
    assert report is not None
    assert (report.method, report.source_items, report.target_items, report.measured_items) == (method, 100, 160, 80)
    assert report.accuracy_after is not None
    assert report.accuracy_before is not None
    # The same by hand: what each of the two says of the target's labelled items.
    target = degraded(np.concatenate([around(label, 40, 5)[:20] for label in range(4)]))
    for name, claimed in (("plain", report.accuracy_before), ("moved", report.accuracy_after)):
        answers = vectors.classify(vectors=target, head=name, reject=False)
        right = [answer.label == f"class {i // 20}" for i, answer in enumerate(answers)]
        assert np.mean(right) == pytest.approx(claimed)
    assert report.accuracy_after > max(report.accuracy_before + 0.1, 0.9)
    assert report.gain_low is not None
    assert report.gain_high is not None
    assert 0 < report.gain_low < report.accuracy_after - report.accuracy_before < report.gain_high
    assert not any("adaptation" in warning for warning in head.warnings)
    assert vectors.head("moved").adaptation == report
    assert [each.adaptation for each in vectors.heads() if each.name == "moved"] == [report]
    lengths = [n.similarity for n in vectors.classify(vectors=target[:1], head="moved")[0].neighbours]
    assert max(lengths) <= 1 + 1e-5
    before = [n.similarity for n in vectors.classify(vectors=target[:1], head="plain")[0].neighbours]
    assert min(lengths) > max(before) + 0.1  # the examples have moved to where the queries are


def test_an_adaptation_that_does_not_help_is_warned_of(vectors: Collection, other: Collection) -> None:
    for label in range(4):
        fill(vectors, "s", label, 15)
        fill(other, "t", label, 10, 9)
    useless = vectors.train_head("h", "ncm", adapt="center", target=other.name)
    assert useless.adaptation is not None
    assert useless.adaptation.accuracy_before == useless.adaptation.accuracy_after == 1
    assert any("adaptation by center does not clearly help" in warning for warning in useless.warnings)
    vectors.delete(where="label is not null")
    other.delete(where="label is not null")
    line = 0.05 * np.random.default_rng(0).normal(size=(72, DIM)) + 30 * np.eye(DIM)[0]
    line[:60, 1] += np.repeat(np.arange(4), 15)
    line[60:, 1] += 3  # all of the last class, which centring takes for an average one
    vectors.add_vectors([f"s{i}" for i in range(60)], line[:60], labels=[f"class {i // 15}" for i in range(60)])
    other.add_vectors([f"t{i}" for i in range(12)], line[60:], labels=["class 3"] * 12)
    harmful = vectors.train_head("h", "knn", adapt="center", target=other.name)
    assert any("makes it worse" in warning and "train without it" in warning for warning in harmful.warnings)
    assert harmful.adaptation is not None
    assert (harmful.adaptation.gain_high or 0) < 0
    other.label({f"t{i}": None for i in range(12)})
    unknown = vectors.train_head("h", "ncm", adapt="center", target=other.name)
    assert unknown.adaptation is not None
    assert (unknown.adaptation.measured_items, unknown.adaptation.accuracy_after) == (0, None)
    assert any("none has a label that the head knows" in warning for warning in unknown.warnings)


def test_a_target_may_be_a_part_of_the_same_collection(vectors: Collection) -> None:
    for label in range(4):
        fill(vectors, "s", label, 25)
        ids = [f"t{label}-{i:03}" for i in range(20)]
        labels = [f"class {label}" if i < 8 else None for i in range(20)]
        vectors.add_vectors(ids, degraded(around(label, 20, 5)), labels=labels, attributes=[{"night": True}] * 20)
    apart = vectors.train_head("h", "ridge", where="not exists(night)", adapt="ot", target_where="night = true")
    assert apart.adaptation is not None
    assert (apart.adaptation.source_items, apart.adaptation.measured_items) == (100, 32)
    # Trained on the target's own labelled items as well: those stay where they are, and are not measured on.
    both = vectors.train_head("h", "ridge", adapt="ot", target_where="night = true")
    assert both.metrics.items == 132
    assert both.adaptation is not None
    assert (both.adaptation.source_items, both.adaptation.measured_items) == (100, 0)
    (own,) = vectors.classify(ids=["t0-000"], head="h", neighbours=1)
    assert own.neighbours[0].id == "t0-000"
    assert own.neighbours[0].similarity == pytest.approx(1, abs=1e-5)
    with pytest.raises(FailedPrecondition, match="nothing to adapt"):
        vectors.train_head("h", where="night = true", adapt="ot", target_where="night = true")


def test_adaptations_that_cannot_be_are_refused(client: Client, vectors: Collection, other: Collection) -> None:
    for label in range(2):
        fill(vectors, "s", label, 10)
    fill(other, "t", 0, 9, labelled=False)
    with pytest.raises(FailedPrecondition, match=r"has 9 items that stand for the target, an adaptation needs 10"):
        vectors.train_head("h", adapt="coral", target=other.name)
    fill(other, "t", 1, 9, labelled=False)
    with pytest.raises(InvalidArgument, match="unknown adaptation 'magic': use one of center, coral, ot"):
        vectors.train_head("h", adapt="magic", target=other.name)
    with pytest.raises(InvalidArgument, match="the target is this collection itself"):
        vectors.train_head("h", adapt="coral")
    with pytest.raises(InvalidArgument, match="say adapt="):
        vectors.train_head("h", target=other.name)
    with pytest.raises(NotFound):
        vectors.train_head("h", adapt="coral", target="nowhere")
    wider = client.create_collection("wider", dim=DIM + 1)
    try:
        with pytest.raises(FailedPrecondition, match=f"external:{DIM + 1}.*external:{DIM}"):
            vectors.train_head("h", adapt="coral", target="wider")
        with pytest.raises(FailedPrecondition, match=f"external:{DIM + 1}.*external:{DIM}"):
            vectors.select_source("wider")
        fill(wider, "x", 0, 0)
    finally:
        client.delete_collection("wider")
    with pytest.raises(NotFound):
        vectors.head("h")


@pytest.mark.shared
def test_photographs_teach_a_head_for_grey_ones(client: Client) -> None:
    """Real pictures: half of them in colour to learn from, the others without colour, unlabelled but for a check."""
    from PIL import Image  # noqa: PLC0415

    names = sorted(path.name for path in (SHARED / "data/caltech101").iterdir())[:30]
    made = [client.create_collection(f"grey-{i}-{uuid.uuid4().hex[:6]}") for i in range(2)]
    try:
        for name in names:
            for i, path in enumerate(sorted((SHARED / "data/caltech101" / name).iterdir())[:20]):
                with Image.open(path) as image:
                    picture: Any = image.convert("RGB" if i % 2 == 0 else "L")
                made[i % 2].add([picture], ids=[f"{name}-{i}"], labels=[name])
        source, target = made
        report = source.train_head("h", "ridge", adapt="ot", target=target.name).adaptation
        assert report is not None
        assert report.measured_items == 300
        assert report.gain_low is not None
        assert report.gain_low > 0
        chosen = source.select_source(target.name, keep=0.6)
        assert len(chosen) == 300
        assert 0.3 < len(chosen.ids) / 300 <= 0.7
        assert set(source.train_head("few", "ncm", ids=chosen.ids).classes) <= set(names)
    finally:
        for each in made:
            client.delete_collection(each.name)


def test_source_items_are_selected_and_trained_on(vectors: Collection, other: Collection) -> None:
    for label in range(3):
        fill(vectors, "s", label, 20)
        fill(other, "t", label, 15, 3, labelled=False)
    far = around(0, 5, 4) + 0.6 * np.eye(DIM, dtype=np.float32)[9]
    vectors.add_vectors([f"far-{i}" for i in range(5)], far, labels=["class 0"] * 5)
    vectors.label({"s1-003": "class 2", "s2-004": "class 1"})
    found = vectors.select_source(other.name, keep=0.75, kind="lda")
    assert [item.id for item in found] == sorted(item.id for item in vectors.items())
    by_id = {item.id: item for item in found}
    for item_id, rather in (("s1-003", "class 1"), ("s2-004", "class 2")):
        assert not by_id[item_id].kept
        assert by_id[item_id].reason == f"looks like {rather!r} to a head trained without it"
        assert by_id[item_id].label_probability < 0.5
    for i in range(5):
        assert not by_id[f"far-{i}"].kept
        assert "farther from the target" in by_id[f"far-{i}"].reason
    kept = [item for item in found if item.kept]
    assert not any(item.reason for item in kept)
    assert len(kept) == 19 + 15 + 15  # of 25, 19 and 19 that are right, rounded up
    assert found.ids == [item.id for item in kept]
    head = vectors.train_head("chosen", "ncm", ids=found.ids)
    assert head.metrics.items == len(kept)
    assert len(vectors.select_source(other.name, where="label = 'class 0'")) == 25
    with pytest.raises(InvalidArgument, match="over 0 and up to 1"):
        vectors.select_source(other.name, keep=0)
    with pytest.raises(FailedPrecondition, match="no labelled items"):
        other.select_source(vectors.name)
    with pytest.raises(FailedPrecondition, match="no items that match to stand for the target"):
        vectors.select_source(other.name, target_where="id = 'x'")


def test_a_head_labels_another_collection(vectors: Collection, other: Collection) -> None:
    for label in range(3):
        fill(vectors, "s", label, 20)
        fill(other, "t", label, 30, 3, labelled=False)
    fill(other, "strange", 9, 20, labelled=False)
    vectors.train_head("shapes", "ridge")
    options: dict[str, Any] = {"head_collection": vectors.name, "min_score": 0.8, "max_per_class": 10}
    dry = other.pseudo_label("shapes", dry_run=True, **options)
    assert other.count("label is not null") == 0
    found = other.pseudo_label("shapes", **options)
    assert list(found) == list(dry)
    assert (found.version, len(found), len(found.taken)) == (1, 110, 30)
    assert other.count(f"label_source = 'head shapes v1 of {vectors.name}' and label_score >= 0.8") == 30
    for item in other.items("label is not null"):
        assert item.label == f"class {item.id[1]}"
    assert not [each for each in found.taken if each.id.startswith("strange")]
    # Only what people said: what a head said can be left out.
    other.label({"t0-000": "class 0", "t1-000": "class 1"})
    assert set(other.train_head("own", where="not exists(label_source)").class_counts.values()) == {1}
    undone = other.label({item.id: None for item in other.items("exists(label_source)")})
    assert undone.changed >= 28
    assert other.count("exists(label_source) or exists(label_score)") == 0
    assert other.count("label is not null") == 2


def test_the_async_client_has_the_same(server: ServerProcess, vectors: Collection, other: Collection) -> None:
    for label in range(2):
        fill(vectors, "s", label, 10)
        fill(other, "t", label, 10, labelled=False)

    async def run() -> tuple[int, int, int, int]:
        async with AsyncClient(server.address) as lw:
            mine, theirs = await lw.collection(vectors.name), await lw.collection(other.name)
            await mine.train_head("h", "ncm")
            given = await theirs.pseudo_label("h", head_collection=mine.name, min_score=0.6)
            changed = await mine.label({"s0-000": "new"})
            review = await mine.review_labels()
            return len(given), changed.changed, review.labelled, len(await mine.select_source(theirs.name))

    assert asyncio.run(run()) == (20, 1, 20, 20)
