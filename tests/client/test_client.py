"""The client library against a real server: what people give it, what comes back, what it does when things fail."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from likewise import AsyncClient, Client
from likewise.collection import NewItem
from likewise.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from likewise.sync import Collection
from support.pictures import digit_images, photograph_jpegs, photographs, png
from support.server import ServerProcess


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_every_way_to_hold_a_picture_gives_the_same_vector(client: Client, tmp_path: Path) -> None:
    image = photographs()["chelsea"].resize((160, 120))
    data = png(image)
    path = tmp_path / "chelsea.png"
    path.write_bytes(data)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    held = [path, str(path), data, bytearray(data), image, array, array / 255.0, tensor, tensor / 255]
    vectors = client.embed(held).vectors
    assert vectors.dtype == np.float32
    assert min(cosine(row, vectors[0]) for row in vectors) > 0.999999


def test_greyscale_alpha_and_bool_arrays_are_images_too(client: Client) -> None:
    rng = np.random.default_rng(0)
    made = [
        rng.integers(0, 255, (40, 30), np.uint8),
        rng.integers(0, 255, (40, 30, 4), np.uint8),
        rng.random((40, 30, 1)),
        rng.random((40, 30)) > 0.5,
    ]
    assert not client.embed(made).errors


def test_what_is_no_image_is_an_error_of_its_own(client: Client, tmp_path: Path) -> None:
    good = photograph_jpegs()[0]
    held = [good, tmp_path / "missing.jpg", b"", np.zeros((3, 3, 9)), np.full((4, 4), 7.0), 42, good]
    result = client.embed(held)
    assert sorted(result.errors) == [1, 2, 3, 4, 5]
    assert isinstance(result.errors[1], NotFound)
    assert "missing.jpg" in str(result.errors[1])
    assert all(isinstance(result.errors[i], InvalidArgument) for i in (2, 3, 4, 5))
    assert not result.vectors[[1, 2, 3, 4, 5]].any()
    np.testing.assert_allclose(result.vectors[0], result.vectors[6], rtol=1e-4, atol=1e-5)


def test_embedding_nothing_is_nothing(client: Client) -> None:
    assert client.embed([]).vectors.shape == (0, 0)


def test_order_is_kept_over_many_messages(client: Client) -> None:
    pictures = photograph_jpegs()
    many = client.embed(pictures * 20, progress=False)
    once = client.embed(pictures)
    assert many.vectors.shape == (320, once.vectors.shape[1])
    assert len(many.timings) == 10
    for start in range(0, 320, 16):
        np.testing.assert_allclose(many.vectors[start : start + 16], once.vectors, rtol=1e-3, atol=1e-4)


def test_layers_poolings_and_names_choose_spaces(client: Client) -> None:
    images = photograph_jpegs()[:2]
    default = client.embed(images)
    other = client.embed(images, layer="features.3", pooling="max")
    again = client.embed(images, backbone=other.backbone)
    assert default.fingerprint != other.fingerprint == again.fingerprint
    assert other.backbone == "likewise-tiny?layer=features.3&pooling=max"
    np.testing.assert_allclose(other.vectors, again.vectors, rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidArgument, match="avg, gem, max or cls"):
        client.embed(images, pooling="median")


def test_the_server_describes_itself(client: Client) -> None:
    info = client.info()
    assert info.default_backbone == "likewise-tiny"
    assert info.limits.max_items == 1024
    served, *known = client.backbones()
    assert served.served
    assert served.name == "likewise-tiny"
    assert "features" in served.layers
    assert {"resnet50", "vgg16", "vit_b_16"} <= {backbone.name for backbone in known}
    assert [b.name for b in client.backbones(served_only=True)] == ["likewise-tiny"]


def test_items_live_from_add_to_delete(collection: Collection, photo_files: list[Path]) -> None:
    labels = ["even" if i % 2 == 0 else None for i in range(len(photo_files))]
    attributes = [{"n": i, "nested": {"half": i / 2}} for i in range(len(photo_files))]
    outcomes = collection.add(photo_files, labels=labels, attributes=attributes)
    assert outcomes.count("created") == 16
    outcomes.raise_for_errors()
    assert collection.count() == 16
    assert collection.count("label = 'even' and n >= 8") == 4
    first, missing = collection.get([str(photo_files[0]), "nowhere"], vectors=True)
    assert missing is None
    assert first is not None
    assert first.label == "even"
    assert first.attributes == {"n": 0, "nested": {"half": 0}}
    assert first.uri == str(photo_files[0])
    assert len(first.content_hash) == 64
    assert first.vector is not None
    assert first.vector.shape == (collection.info.dim,)
    assert {item.id for item in collection.items("label is null")} == {str(p) for p in photo_files[1::2]}
    again = collection.add(photo_files, labels=labels, attributes=attributes, skip_unchanged=True)
    assert again.count("unchanged") == 16
    relabelled = collection.add(photo_files[:1], labels=["new"], skip_unchanged=True)
    assert relabelled.count("updated") == 1
    assert collection.delete([str(photo_files[0])]) == 1
    assert collection.delete(where="n > 13") == 2
    assert collection.count() == 13
    with pytest.raises(InvalidArgument, match="either ids, or where"):
        collection.delete()


def test_search_finds_the_picture_and_respects_the_filter(collection: Collection, photo_files: list[Path]) -> None:
    collection.add(photo_files, attributes=[{"n": i} for i in range(16)])
    hits = collection.search(photo_files[4], k=3)
    assert hits[0].id == str(photo_files[4])
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits.exact
    assert hits.timings.decode_ms > 0
    others = collection.search(id=str(photo_files[4]), k=15)
    assert len(others) == 15
    assert str(photo_files[4]) not in {hit.id for hit in others}
    few = collection.search(photo_files[4], k=10, where="n in (1, 2, 3)")
    assert {hit.attributes["n"] for hit in few} == {1, 2, 3}
    assert few.filtered_count == 3


def test_search_equals_brute_force_over_real_vectors(collection: Collection) -> None:
    images, labels = digit_images(30)
    collection.add(images, ids=[f"d{i}" for i in range(300)], labels=labels)
    stored = {item.id: item.vector for item in collection.items(vectors=True)}
    names = list(stored)
    matrix = np.stack([v for v in stored.values() if v is not None]).astype(np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    queries = client_vectors = np.stack([v for v in stored.values() if v is not None])[::17]
    found = collection.search_many(vectors=client_vectors, k=12)
    truth = (queries.astype(np.float64) / np.linalg.norm(queries, axis=1, keepdims=True)) @ matrix.T
    for hits, scores in zip(found, truth, strict=True):
        best = np.sort(scores)[::-1][:12]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-6)
        np.testing.assert_allclose([scores[names.index(hit.id)] for hit in hits], best, atol=1e-6)


def test_many_searches_keep_their_order_and_their_errors(collection: Collection, photo_files: list[Path]) -> None:
    collection.add(photo_files)
    found = collection.search_many([photo_files[3], b"broken", photo_files[5]], k=1)
    assert [hits[0].id for hits in (found[0], found[2])] == [str(photo_files[3]), str(photo_files[5])]
    assert isinstance(found[1].error, InvalidArgument)
    with pytest.raises(InvalidArgument):
        collection.search(b"broken")
    with pytest.raises(InvalidArgument, match="search by one of"):
        collection.search()


@pytest.mark.parametrize("kind", ["auto", "ncm", "knn", "ridge", "logreg"])
def test_a_head_learns_new_classes_and_knows_what_it_does_not_know(collection: Collection, kind: str) -> None:
    images, labels = digit_images(24, classes=4)
    ids = [f"{i:03}" for i in range(len(images))]
    splits = [{"split": "train" if i % 24 < 12 else "test"} for i in range(len(images))]
    collection.add(images, ids=ids, labels=labels, attributes=splits)
    head = collection.train_head("digits", kind, where="split = 'train'")
    assert head.version == 1
    assert kind in {head.kind, "auto"}
    assert head.reason or kind != "auto"
    assert head.classes == ("0", "1", "2", "3")
    assert head.class_counts == {"0": 12, "1": 12, "2": 12, "3": 12}
    m = head.metrics
    assert m.accuracy is not None
    assert m.accuracy_low is not None
    assert m.accuracy_high is not None
    assert m.accuracy_low < m.accuracy < m.accuracy_high or m.accuracy in (0, 1)
    assert m.chance == 0.25
    test_rows = [i for i in range(len(images)) if splits[i]["split"] == "test"]
    answers = collection.classify([images[i] for i in test_rows], head="digits", reject=False, neighbours=2)
    right = np.mean([a.label == labels[i] for a, i in zip(answers, test_rows, strict=True)])
    assert right > 0.6
    assert all(sum(a.probabilities.values()) == pytest.approx(1, abs=1e-4) for a in answers)
    assert all(len(a.neighbours) == 2 and a.head_version == 1 for a in answers)
    by_id = collection.classify(ids=[ids[i] for i in test_rows], head="digits", reject=False)
    assert [a.best for a in by_id] == [a.best for a in answers]
    found = collection.evaluate("digits", where="split = 'test'")
    assert found.items == found.known_items == len(test_rows)
    assert found.training_items == 0
    assert found.confusion.sum() == len(test_rows)
    assert found.accuracy is not None
    assert found.accuracy <= right + 1e-9
    stranger = collection.classify([photographs()["coffee"], photographs()["chelsea"]], head="digits")
    assert [a.label for a in stranger] == [None, None]
    assert all(a.novelty > a.threshold for a in stranger)


def test_heads_have_versions(collection: Collection) -> None:
    images, labels = digit_images(4, classes=3)
    first = collection.train_head("h", "ncm", images=images, labels=labels)
    assert collection.count() == 0, "examples are not stored"
    second = collection.train_head("h", "ridge", images=images[:8], labels=labels[:8])
    assert (first.version, second.version) == (1, 2)
    assert collection.head("h").kind == "ridge"
    assert collection.head("h", 1).classes == ("0", "1", "2")
    assert [head.version for head in collection.heads()] == [1, 2]
    assert len(collection.classify(images[:1], head="h", version=1)[0].probabilities) == 3
    collection.delete_head("h", 2)
    assert collection.head("h").version == 1
    collection.delete_head("h")
    with pytest.raises(NotFound):
        collection.head("h")


def test_spaces_are_never_mixed(client: Client, collection: Collection) -> None:
    images = photograph_jpegs()[:3]
    other = client.embed(images, layer="features.3")
    with pytest.raises(FailedPrecondition, match=r"cannot be compared|numbers"):
        collection.add_vectors(["a", "b", "c"], other.vectors, fingerprint=other.fingerprint)
    with pytest.raises(FailedPrecondition):
        collection.search(vector=other.vectors[0], fingerprint=other.fingerprint)
    own = client.embed(images)
    assert collection.add_vectors(["a", "b", "c"], own.vectors, fingerprint=own.fingerprint).count("created") == 3


def test_vectors_from_elsewhere(client: Client) -> None:
    plain = client.create_collection("elsewhere", dim=8, metric="dot")
    try:
        vectors = np.eye(8, dtype=np.float32) * np.arange(1, 9)[:, None]
        outcomes = plain.add_vectors([str(i) for i in range(8)], vectors, labels=["a", "b"] * 4)
        assert outcomes.count("created") == 8
        assert [hit.id for hit in plain.search(vector=np.ones(8), k=3)] == ["7", "6", "5"]
        with pytest.raises(FailedPrecondition, match="send vectors of 8"):
            plain.search(photograph_jpegs()[0])
        broken = plain.add_vectors(["nan", "ok"], np.array([[np.nan] * 8, [1] * 8]))
        assert isinstance(broken.errors["nan"], InvalidArgument)
        assert plain.count() == 9
        with pytest.raises(InvalidArgument, match=r"\(n, dim\)"):
            plain.add_vectors(["x"], np.ones(8))
        with pytest.raises(InvalidArgument, match="3 entries for 2"):
            plain.add_vectors(["x", "y", "z"], np.ones((2, 8)))
        zero = plain.add_vectors(["wide"], np.ones((1, 9)))
        assert zero.errors["wide"].code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT")
    finally:
        client.delete_collection("elsewhere")


def test_the_same_id_twice_is_stored_once(collection: Collection) -> None:
    images = photograph_jpegs()
    outcomes = collection.add(images[:3], ids=["same", "other", "same"])
    assert len(outcomes) == 3
    assert not outcomes.errors
    assert collection.count() == 2
    assert collection.search(images[2], k=1)[0].id == "same"


def test_names_are_taken_once(client: Client, collection: Collection) -> None:
    with pytest.raises(AlreadyExists):
        client.create_collection(collection.name)
    assert client.create_collection(collection.name, exist_ok=True).name == collection.name
    assert collection.name in [info.name for info in client.collections()]
    with pytest.raises(NotFound, match="nowhere"):
        client.collection("nowhere")
    with pytest.raises(InvalidArgument):
        client.create_collection("both", backbone="likewise-tiny", dim=4)
    with pytest.raises(NotFound, match="resnet50"):
        client.create_collection("other", backbone="resnet50")


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_export_writes_every_item(collection: Collection, photo_files: list[Path], tmp_path: Path, suffix: str) -> None:
    collection.add(photo_files, labels=["x"] * 16, attributes=[{"n": i} for i in range(16)])
    target = tmp_path / f"out{suffix}"
    assert collection.export(target, where="n < 10") == 10
    stored = {item.id: item.vector for item in collection.items("n < 10", vectors=True)}
    if suffix == ".npy":
        matrix = np.load(target)
        names = [line.split('"')[3] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    else:
        import pyarrow.parquet as pq  # noqa: PLC0415

        table = pq.read_table(target)
        names = table["id"].to_pylist()
        matrix = np.array(table["vector"].to_pylist(), np.float32)
        assert table.schema.metadata[b"likewise.fingerprint"].decode() == collection.fingerprint
    assert sorted(names) == sorted(stored)
    for name, row in zip(names, matrix, strict=True):
        np.testing.assert_array_equal(row, stored[name])
    with pytest.raises(InvalidArgument, match=r"\.parquet or \.npy"):
        collection.export(tmp_path / "out.csv")
    assert not list(tmp_path.glob("*.partial"))


def test_check_finds_nothing_wrong(collection: Collection, photo_files: list[Path]) -> None:
    collection.add(photo_files)
    report = collection.check()
    assert report.ok
    assert report.items_checked == 16


async def test_async_client_mirrors_the_blocking_one(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as lw:
        images = photograph_jpegs()
        emb, info = await asyncio.gather(lw.embed(images), lw.info())
        assert emb.vectors.shape == (16, 512)
        pets = await lw.create_collection("async-pets", exist_ok=True)
        outcomes = await pets.add(images, labels=["a", "b"] * 8)
        assert outcomes.count("created") == 16
        head = await pets.train_head("h", "ncm")
        assert head.classes == ("a", "b")
        hits = await pets.search(images[0])
        assert len(hits) == 10

        async def endless() -> object:
            for number in range(100):
                buffer = io.BytesIO()
                Image.new("RGB", (20, 20), (number, 0, 0)).save(buffer, "PNG")
                yield NewItem(f"n{number}", buffer.getvalue())

        seen = [outcome.id async for outcome in pets.upsert(endless())]  # type: ignore[arg-type]
        assert seen == [f"n{number}" for number in range(100)]
        assert info.default_backbone
        await lw.delete_collection("async-pets")


def test_blocking_and_async_have_the_same_methods() -> None:
    import inspect  # noqa: PLC0415

    from likewise.collection import AsyncCollection  # noqa: PLC0415

    for blocking, asynchronous in ((Client, AsyncClient), (Collection, AsyncCollection)):
        names = {name for name, _ in inspect.getmembers(asynchronous, callable) if not name.startswith("_")}
        assert names <= {name for name, _ in inspect.getmembers(blocking, callable)}
        for name in names:
            assert getattr(blocking, name).__doc__ == getattr(asynchronous, name).__doc__


def test_no_server_is_one_clear_message() -> None:
    with (
        Client("127.0.0.1:9", timeout=2, retries=1) as lw,
        pytest.raises(Unavailable, match=r"no likewise server answers at 127\.0\.0\.1:9.*likewise serve"),
    ):
        lw.info()
