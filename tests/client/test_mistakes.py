"""What people get wrong costs them that one thing, with an answer that says what to do, and never the rest."""

from __future__ import annotations

import io
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from likewise import Client
from likewise.collection import NewItem
from likewise.errors import InvalidArgument, LikewiseError, NotFound
from likewise.sync import Collection
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from support.pictures import jpeg, photograph_jpegs, photographs
from support.server import start_server

RNG = np.random.default_rng(0)


@pytest.fixture
def plain(client: Client, request: pytest.FixtureRequest) -> Any:
    """A collection of 8-d vectors from elsewhere."""
    name = f"plain-{abs(hash(request.node.nodeid))}"
    yield client.create_collection(name, dim=8, metric="dot")
    client.delete_collection(name)


def vectors(count: int) -> Any:
    return RNG.normal(size=(count, 8)).astype(np.float32)


def test_one_text_is_not_a_list_of_letters(client: Client, plain: Collection) -> None:
    plain.add_vectors(["a", "b", "c", "abc"], vectors(4))
    for call in (
        lambda: plain.delete("abc"),
        lambda: plain.get("abc"),
        lambda: plain.add("abc.jpg"),
        lambda: client.embed("abc.jpg"),
        lambda: plain.search_many("abc.jpg"),
    ):
        with pytest.raises(InvalidArgument, match="brackets"):
            call()
    assert plain.count() == 4


def test_an_id_with_nul_is_no_other_id(plain: Collection) -> None:
    plain.add_vectors(["a", "ab"], vectors(2))
    assert plain.delete(["a\0b"]) == 0
    assert plain.get(["a\0b"]) == [None]
    assert plain.count() == 2


@pytest.mark.parametrize("bad", [10**400, 2**53 + 1, {1, 2}, b"x", [[[[object()]]]]])
def test_an_attribute_that_cannot_be_sent_costs_its_item_only(plain: Collection, bad: Any) -> None:
    outcomes = plain.add_vectors(list("abc"), vectors(3), attributes=[{}, {"x": bad}, {"y": np.int64(3)}])
    assert [outcome.status for outcome in outcomes] == ["created", "failed", "created"]
    assert "'x'" in str(outcomes.errors["b"])
    assert plain.count("y = 3") == 1


def test_attributes_nested_too_deep_cost_their_item_only(plain: Collection) -> None:
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"a": deep}
    outcomes = plain.add_vectors(["a", "b"], vectors(2), attributes=[deep, {}])
    assert [outcome.status for outcome in outcomes] == ["failed", "created"]


def test_numpy_labels_are_labels(plain: Collection) -> None:
    head = plain.train_head("h", "ncm", vectors=vectors(6), labels=list(np.array([0, 0, 1, 1, 2, 2])))
    assert head.classes == ("0", "1", "2")
    assert not head.warnings, "different vectors are not the same picture"
    failed = plain.add_vectors(["x"], vectors(1), labels=[3.5])  # type: ignore[list-item]  # a mistake
    assert "'3.5'" in str(failed.errors["x"])


@pytest.mark.parametrize("options", [{"k": -1}, {"k": 2**33}, {"k": 1.5}, {"k": 0}, {"k": "3"}, {"k": 10_001}], ids=str)
def test_a_wrong_k_is_an_invalid_argument(plain: Collection, options: Any) -> None:
    plain.add_vectors(["a"], vectors(1))
    with pytest.raises(InvalidArgument):
        plain.search(vector=vectors(1)[0], **options)
    assert len(plain.search(vector=vectors(1)[0], k=10_000)) == 1
    assert plain.search(id="a", k=10_000) == []


def test_a_bad_query_costs_itself_only(plain: Collection) -> None:
    plain.add_vectors(list("ab"), vectors(2))
    queries = np.stack([vectors(1)[0], np.full(8, 1e38, np.float32), vectors(1)[0]])
    found = plain.search_many(vectors=queries)
    assert [bool(hits.error) for hits in found] == [False, True, False]
    plain.train_head("h", "ncm", vectors=vectors(4), labels=list("aabb"))
    queries[1] = 0
    answers = plain.classify(vectors=queries, head="h")
    assert [bool(answer.error) for answer in answers] == [False, True, False]


def test_of_an_id_given_twice_the_later_wins(collection: Collection) -> None:
    images = photograph_jpegs()
    large = jpeg(photographs()["hubble_deep_field"].resize((3000, 3000)))
    sent = [large, *(images * 3)[:40], images[0]]
    ids = ["same", *(f"i{n}" for n in range(40)), "same"]
    labels = ["first", *["x"] * 40, "second"]
    assert not collection.add(sent, ids=ids, labels=labels).errors
    [item] = collection.get(["same"])
    assert item is not None
    assert item.label == "second"


def test_pillow_images_keep_their_orientation_and_broken_ones_are_errors(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(photographs()["rocket"].resize((300, 200)), 95, exif=exif)
    whole = jpeg(photographs()["coffee"])
    broken = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    result = client.embed([data, Image.open(io.BytesIO(data)), broken, "nul\0.jpg"])
    a, b = result.vectors[:2]
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    assert sorted(result.errors) == [2, 3]


@pytest.mark.parametrize("text", ["x" * 20_000, "é" * 9000])
def test_a_long_name_is_not_found_like_a_short_one(client: Client, text: str) -> None:
    with pytest.raises(NotFound):
        client.collection(text)
    with pytest.raises(NotFound):
        client.embed(photograph_jpegs()[:1], backbone=text)


@pytest.mark.parametrize("layer", ["+", "features.1+", " features.1", "features.1+features.1", "+".join("abcdefghi")])
def test_a_layer_is_spelled_one_way(client: Client, layer: str) -> None:
    with pytest.raises(InvalidArgument, match="joined by"):
        client.embed(photograph_jpegs()[:1], layer=layer)


def test_items_with_large_attributes_are_listed_and_fetched(plain: Collection, tmp_path: Path) -> None:
    text = "x" * 60_000
    ids = [f"{n:04}" for n in range(1300)]
    plain.add_vectors(ids, vectors(1300), attributes=[{"t": text}] * 1300)
    assert [item.id for item in plain.items()] == ids
    assert sum(item is not None for item in plain.get(ids)) == 1300
    assert plain.export(tmp_path / "all.npy") == 1300
    with pytest.raises(LikewiseError, match="ask for less"):
        plain.search(vector=vectors(1)[0], k=1300)
    with pytest.raises(InvalidArgument, match="no directory"):
        plain.export(tmp_path / "nowhere" / "all.npy")


def test_many_queries_with_many_hits_are_cut_into_messages(plain: Collection) -> None:
    plain.add_vectors([f"{n}" for n in range(50)], vectors(50))
    found = plain.search_many(vectors=vectors(64), k=10_000)
    assert [len(hits) for hits in found] == [50] * 64


def test_an_interrupted_iteration_ends_as_an_interrupt(plain: Collection) -> None:
    main = threading.get_ident()
    # Tests that a shell runs in the background inherit that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def slow() -> Any:
        yield from (NewItem(f"n{n}", vector=vectors(1)[0]) for n in range(40))
        # Ctrl-C, while the main thread waits for outcomes; a simulated signal would not end that wait.
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(1)

    try:
        with pytest.raises(KeyboardInterrupt):
            list(plain.upsert(slow()))
    finally:
        signal.signal(signal.SIGINT, before)
    assert plain.add_vectors(["after"], vectors(1)).count("created") == 1, "the client still works"


def test_a_stream_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    import grpc  # noqa: PLC0415

    from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub  # noqa: PLC0415

    image = pb.Image(data=photograph_jpegs()[0])
    sent = 0
    over = threading.Event()

    def endless() -> Any:
        nonlocal sent
        while not over.is_set():
            sent += 1
            yield epb.EmbedStreamRequest(item_id=sent, image=image)

    with start_server(tmp_path / "data") as server, grpc.insecure_channel(server.address) as channel:
        stub: Any = EmbeddingServiceStub(channel)
        answered = 0
        stopping: threading.Thread | None = None
        started = 0.0
        with pytest.raises(grpc.RpcError) as ended:  # noqa: PT012  # the stream itself is what raises
            for reply in stub.EmbedStream(endless(), timeout=60):
                assert not reply.HasField("error")
                answered += 1
                if answered == 20:
                    started = time.monotonic()
                    stopping = threading.Thread(target=server.stop)
                    stopping.start()
        over.set()
        assert stopping is not None
        stopping.join()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "what was answered is done" in str(ended.value.details())
        assert time.monotonic() - started < 9, "it did not wait for the end of the grace time"
        assert server.process.returncode == 0


def test_a_deletion_whose_answer_was_lost_is_done() -> None:
    """Against a scripted method: the first call breaks after deleting, the second finds nothing."""
    import asyncio  # noqa: PLC0415

    import grpc  # noqa: PLC0415

    from likewise.transport import Transport  # noqa: PLC0415

    codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND]

    async def method(_request: object, **_options: object) -> None:
        metadata = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(codes.pop(0), metadata, metadata)

    async def run() -> None:
        transport = Transport("127.0.0.1:9", timeout=5, retries=3)
        await transport.unary(method, None, gone_is_done=True)
        codes[:] = [grpc.StatusCode.NOT_FOUND]
        with pytest.raises(NotFound):
            await transport.unary(method, None, gone_is_done=True)
        await transport.close()

    asyncio.run(run())
