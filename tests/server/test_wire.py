"""The contract on the wire, spoken as a client in another language would: raw stubs, reflection, health."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceStub
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from support.pictures import jpeg, photograph_jpegs, photographs
from support.server import ServerProcess, start_server

INVALID, OUT_OF_RANGE, NOT_FOUND, PRECONDITION = 3, 11, 5, 9


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    size = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=size) as made:
        yield made


@pytest.fixture(scope="module")
def embedding(channel: grpc.Channel) -> Any:
    return EmbeddingServiceStub(channel)


@pytest.fixture(scope="module")
def collections(channel: grpc.Channel) -> Any:
    return CollectionServiceStub(channel)


@pytest.fixture(scope="module")
def heads(channel: grpc.Channel) -> Any:
    return HeadServiceStub(channel)


def status_of(call: grpc.RpcError) -> status_pb2.Status:
    trailing: Any = call.trailing_metadata()
    return status_pb2.Status.FromString(dict(trailing)["grpc-status-details-bin"])


def refused(method: Any, request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=30)
    return caught.value


def images(count: int = 4) -> list[pb.Image]:
    return [pb.Image(data=data) for data in photograph_jpegs()[:count]]


def test_embed_returns_rows_per_item_errors_space_and_timings(embedding: Any) -> None:
    batch = [*images(2), pb.Image(data=b"text"), *images(1), pb.Image()]
    reply = embedding.Embed(epb.EmbedRequest(images=batch), timeout=60)
    matrix = np.frombuffer(reply.vectors.data, "<f4").reshape(reply.vectors.rows, reply.vectors.cols)
    assert matrix.shape == (5, reply.space.dim)
    assert {error.index: error.status.code for error in reply.errors} == {2: INVALID, 4: INVALID}
    assert not matrix[[2, 4]].any()
    assert np.linalg.norm(matrix[[0, 1, 3]], axis=1).min() > 0
    assert reply.space.backbone.name == "likewise-tiny"
    assert len(reply.space.fingerprint) == 32
    assert min(reply.timings.total_ms, reply.timings.forward_ms) > 0  # forwards of several devices add up
    assert reply.timings.decode_ms > 0


def test_half_precision_halves_the_reply(embedding: Any) -> None:
    whole = embedding.Embed(epb.EmbedRequest(images=images()), timeout=60).vectors
    half = embedding.Embed(epb.EmbedRequest(images=images(), dtype=pb.DTYPE_FLOAT16), timeout=60).vectors
    assert len(half.data) * 2 == len(whole.data)
    a, b = np.frombuffer(whole.data, "<f4"), np.frombuffer(half.data, "<f2").astype(np.float32)
    assert np.abs(a - b).max() < 1e-2 * np.abs(a).max()


def test_a_stream_answers_each_image_by_its_id(embedding: Any) -> None:
    pictures = images(16)

    def requests() -> Iterator[epb.EmbedStreamRequest]:
        for number, image in enumerate(pictures * 10):
            yield epb.EmbedStreamRequest(item_id=1000 + number, image=image if number % 7 else pb.Image(data=b"x"))

    unary = embedding.Embed(epb.EmbedRequest(images=pictures), timeout=60).vectors
    rows = np.frombuffer(unary.data, "<f4").reshape(unary.rows, unary.cols)
    seen: dict[int, epb.EmbedStreamResponse] = {}
    for reply in embedding.EmbedStream(requests(), timeout=120):
        assert reply.item_id not in seen
        seen[reply.item_id] = reply
    assert sorted(seen) == [1000 + number for number in range(160)]
    for item_id, reply in seen.items():
        number = item_id - 1000
        if number % 7 == 0:
            assert reply.error.code == INVALID
        else:
            got = np.frombuffer(reply.vector.data, "<f4")
            np.testing.assert_allclose(got, rows[number % 16], rtol=1e-3, atol=1e-4)


def test_a_streams_messages_may_hold_several_images(embedding: Any) -> None:
    pictures = images(12)
    unary = embedding.Embed(epb.EmbedRequest(images=pictures), timeout=60).vectors
    rows = np.frombuffer(unary.data, "<f4").reshape(unary.rows, unary.cols)
    broken = [*pictures[:3], pb.Image(data=b"x"), *pictures[3:5]]
    requests = [
        epb.EmbedStreamRequest(item_id=1, images=pictures),
        epb.EmbedStreamRequest(item_id=2, images=broken, dtype=pb.DTYPE_FLOAT16),
        epb.EmbedStreamRequest(item_id=3, image=pictures[7]),
        epb.EmbedStreamRequest(item_id=4, images=[pb.Image(data=b"x")]),
    ]
    replies = {reply.item_id: reply for reply in embedding.EmbedStream(iter(requests), timeout=60)}
    assert sorted(replies) == [1, 2, 3, 4]

    def vectors(item_id: int, dtype: str = "<f4") -> Any:
        matrix = replies[item_id].vector
        return np.frombuffer(matrix.data, dtype).astype(np.float32).reshape(matrix.rows, matrix.cols)

    np.testing.assert_allclose(vectors(1), rows, rtol=1e-3, atol=1e-4)
    expected = np.concatenate([rows[:3], np.zeros_like(rows[:1]), rows[3:5]])
    np.testing.assert_allclose(vectors(2, "<f2"), expected, atol=1e-2 * np.abs(rows).max())
    assert [(error.index, error.status.code) for error in replies[2].errors] == [(3, INVALID)]
    np.testing.assert_allclose(vectors(3), rows[7:8], rtol=1e-3, atol=1e-4)
    assert [error.index for error in replies[4].errors] == [0]
    assert not vectors(4).any()
    assert not replies[1].errors


@pytest.mark.parametrize(
    ("request_of", "code", "hint"),
    [
        (lambda: epb.EmbedStreamRequest(image=images(1)[0], images=images(2)), INVALID, "not both"),
        (lambda: epb.EmbedStreamRequest(images=[pb.Image()] * 1025), OUT_OF_RANGE, "limit is 1024"),
    ],
)
def test_a_streams_message_that_asks_for_what_cannot_be(
    embedding: Any, request_of: Callable[[], epb.EmbedStreamRequest], code: int, hint: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(embedding.EmbedStream(iter([request_of()]), timeout=60))
    assert caught.value.code().value[0] == code
    assert hint in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("make_request", "code", "hint"),
    [
        (epb.EmbedRequest, INVALID, "at least one"),
        (lambda: epb.EmbedRequest(images=images(1), dtype=99), INVALID, "dtype"),  # type: ignore[arg-type]
        (lambda: epb.EmbedRequest(images=[pb.Image()] * 1025), OUT_OF_RANGE, "limit is 1024"),
        (
            lambda: epb.EmbedRequest(images=images(1), backbone=pb.BackboneRef(name="resnet50")),
            NOT_FOUND,
            "--backbone resnet50",
        ),
        (
            lambda: epb.EmbedRequest(images=images(1), backbone=pb.BackboneRef(pooling=42)),  # type: ignore[arg-type]
            INVALID,
            "pooling",
        ),
        (
            lambda: epb.EmbedRequest(images=images(1), backbone=pb.BackboneRef(layer="nowhere")),
            INVALID,
            "no layer 'nowhere'",
        ),
    ],
)
def test_a_bad_request_is_answered_with_its_code(embedding: Any, make_request: Any, code: int, hint: str) -> None:
    error = refused(embedding.Embed, make_request())
    assert error.code().value[0] == code
    assert status_of(error).code == code
    assert hint in status_of(error).message


def test_request_ids_come_back(embedding: Any) -> None:
    _, call = embedding.GetServerInfo.with_call(epb.GetServerInfoRequest(), metadata=[("x-request-id", "mine-1")])
    assert dict(call.trailing_metadata())["x-request-id"] == "mine-1"
    _, call = embedding.GetServerInfo.with_call(epb.GetServerInfoRequest(), metadata=[("x-request-id", "no good!")])
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 16


def test_create_collection_is_safe_to_retry(collections: Any) -> None:
    request = cpb.CreateCollectionRequest(name="retry", dim=3, request_id="a")
    first = collections.CreateCollection(request)
    assert collections.CreateCollection(request) == first
    request.request_id = "b"
    assert refused(collections.CreateCollection, request).code() is grpc.StatusCode.ALREADY_EXISTS
    collections.DeleteCollection(cpb.DeleteCollectionRequest(name="retry"))


@pytest.fixture
def vectors(collections: Any) -> Iterator[str]:
    """A collection of five 3-d vectors from elsewhere."""
    collections.CreateCollection(cpb.CreateCollectionRequest(name="wire", dim=3, metric=cpb.METRIC_L2))
    items = [
        cpb.UpsertItem(info=pb.ItemInfo(id=f"v{i}", label="even" if i % 2 == 0 else "odd"), vector=pack(i, 0, 0))
        for i in range(5)
    ]
    replies = list(collections.UpsertItems(iter([cpb.UpsertItemsRequest(collection="wire", items=items)])))
    assert [result.outcome for result in replies[0].results] == [cpb.OUTCOME_CREATED] * 5
    yield "wire"
    collections.DeleteCollection(cpb.DeleteCollectionRequest(name="wire"))


def pack(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def test_upserts_answer_in_order_with_an_outcome_per_item(collections: Any, vectors: str) -> None:
    good = cpb.UpsertItem(info=pb.ItemInfo(id="new"), vector=pack(9, 9, 9))
    bad = [
        cpb.UpsertItem(info=pb.ItemInfo(id="short"), vector=b"123"),
        cpb.UpsertItem(info=pb.ItemInfo(id="wide"), vector=pack(1, 2)),
        cpb.UpsertItem(info=pb.ItemInfo(id="nan"), vector=pack(float("nan"), 0, 0)),
        cpb.UpsertItem(info=pb.ItemInfo(id="empty")),
        cpb.UpsertItem(vector=pack(1, 2, 3)),
    ]
    messages = [
        cpb.UpsertItemsRequest(collection=vectors, request_id="one", items=[bad[0], good, *bad[1:]]),
        cpb.UpsertItemsRequest(request_id="two", items=[good]),
    ]
    first, second = collections.UpsertItems(iter(messages), timeout=30)
    assert (first.request_id, second.request_id) == ("one", "two")
    assert [result.id for result in first.results] == ["short", "new", "wide", "nan", "empty", ""]
    assert [result.error.code for result in first.results] == [
        INVALID,
        0,
        *[first.results[2].error.code],
        INVALID,
        INVALID,
        INVALID,
    ]
    assert first.results[2].error.code in (INVALID, PRECONDITION)
    assert first.results[1].outcome == cpb.OUTCOME_CREATED
    assert second.results[0].outcome == cpb.OUTCOME_UNCHANGED


def test_of_an_id_sent_twice_on_one_stream_the_later_wins(collections: Any) -> None:
    name = "order"
    collections.CreateCollection(cpb.CreateCollectionRequest(name=name))
    large = jpeg(photographs()["hubble_deep_field"].resize((3000, 3000)))
    messages = [
        cpb.UpsertItemsRequest(
            collection=name, items=[cpb.UpsertItem(info=pb.ItemInfo(id="x", label=label), image=pb.Image(data=data))]
        )
        for label, data in (("first", large), ("second", photograph_jpegs()[0]))
    ]
    replies = list(collections.UpsertItems(iter(messages), timeout=60))
    assert [r.results[0].outcome for r in replies] == [cpb.OUTCOME_CREATED, cpb.OUTCOME_UPDATED]
    assert collections.GetItems(cpb.GetItemsRequest(collection=name, ids=["x"])).items[0].info.label == "second"
    collections.DeleteCollection(cpb.DeleteCollectionRequest(name=name))


def test_lists_are_paged_to_the_end_without_loss(collections: Any, vectors: str) -> None:
    token, seen = "", []
    while True:
        reply = collections.ListItems(cpb.ListItemsRequest(collection=vectors, page_size=2, page_token=token))
        seen += [item.info.id for item in reply.items]
        assert len(reply.items) <= 2
        token = reply.next_page_token
        if not token:
            break
    assert sorted(seen) == [f"v{i}" for i in range(5)]
    bad = refused(collections.ListItems, cpb.ListItemsRequest(collection=vectors, page_token="garbage"))  # noqa: S106
    assert bad.code() is grpc.StatusCode.INVALID_ARGUMENT
    negative = refused(collections.ListItems, cpb.ListItemsRequest(collection=vectors, page_size=-1))
    assert negative.code() is grpc.StatusCode.INVALID_ARGUMENT


def search_request(name: str, k: int = 2, **fields: Any) -> cpb.SearchRequest:
    matrix = pb.Matrix(data=pack(1.2, 0, 0), dtype=pb.DTYPE_FLOAT32, rows=1, cols=3)
    given: dict[str, Any] = {"collection": name, "k": k, "vectors": matrix}
    return cpb.SearchRequest(**given | fields)


def test_search_says_how_it_searched(collections: Any, vectors: str) -> None:
    reply = collections.Search(search_request(vectors, where="label = 'even'"))
    assert [hit.info.id for hit in reply.results[0].hits] == ["v2", "v0"]
    assert reply.results[0].hits[0].score == pytest.approx(-0.8, abs=1e-6)
    assert reply.exact
    assert reply.filtered_count == 3
    assert not collections.Search(search_request(vectors)).HasField("filtered_count")
    assert len(collections.Search(search_request(vectors, k=100)).results[0].hits) == 5


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"k": 0}, INVALID),
        ({"k": 10_001}, INVALID),
        ({"where": "label ="}, INVALID),
        ({"where": "label = 'a' or"}, INVALID),
        ({"vectors": pb.Matrix(data=pack(1, 2), dtype=pb.DTYPE_FLOAT32, rows=1, cols=2)}, PRECONDITION),
        ({"vectors": pb.Matrix(data=pack(1, 2), dtype=pb.DTYPE_FLOAT32, rows=1, cols=3)}, INVALID),
        ({"vectors": pb.Matrix(data=pack(1, 2, 3), rows=1, cols=3)}, INVALID),
        ({"vectors": pb.Matrix()}, INVALID),
        ({"fingerprint": "somebody-elses"}, PRECONDITION),
        ({"collection": "nowhere"}, NOT_FOUND),
        ({"vectors": None, "images": pb.ImageList(images=[pb.Image(data=b"x")])}, PRECONDITION),
    ],
)
def test_a_bad_search_is_answered_with_its_code(collections: Any, vectors: str, fields: Any, code: int) -> None:
    error = refused(collections.Search, search_request(vectors, **fields))
    assert error.code().value[0] == code


def test_a_query_that_fails_leaves_the_others(collections: Any, vectors: str) -> None:
    matrix = pb.Matrix(data=pack(1, 0, 0, float("nan"), 0, 0), dtype=pb.DTYPE_FLOAT32, rows=2, cols=3)
    reply = collections.Search(search_request(vectors, vectors=matrix))
    assert len(reply.results[0].hits) == 2
    assert reply.results[1].error.code == INVALID
    reply = collections.Search(search_request(vectors, vectors=None, ids=pb.IdList(ids=["v1", "gone"])))
    assert "v1" not in [hit.info.id for hit in reply.results[0].hits]
    assert reply.results[1].error.code == NOT_FOUND


def test_heads_answer_with_codes(heads: Any, vectors: str) -> None:
    missing = refused(heads.Classify, hpb.ClassifyRequest(collection=vectors, head="none", ids=pb.IdList(ids=["v1"])))
    assert missing.code() is grpc.StatusCode.NOT_FOUND
    unknown = refused(heads.TrainHead, hpb.TrainHeadRequest(collection=vectors, name="h", kind="oracle"))
    assert unknown.code() is grpc.StatusCode.INVALID_ARGUMENT
    nothing = refused(heads.TrainHead, hpb.TrainHeadRequest(collection=vectors, name="h", where="label = 'blue'"))
    assert nothing.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_message_over_the_limit_is_refused_and_the_server_lives(embedding: Any) -> None:
    error = refused(embedding.Embed, epb.EmbedRequest(images=[pb.Image(data=bytes(70 * 2**20))]))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert embedding.GetServerInfo(epb.GetServerInfoRequest()).limits.max_message_bytes == 64 * 2**20


def test_health_is_told_per_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "likewise.v1.EmbeddingService", "likewise.v1.CollectionService", "likewise.v1.HeadService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    with pytest.raises(grpc.RpcError):
        stub.Check(health_pb2.HealthCheckRequest(service="likewise.v1.Nothing"))


def test_a_client_that_knows_only_reflection_can_embed(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="likewise.v1.EmbeddingService")
    pool = descriptor_pool.DescriptorPool()
    pending, known = [asked], set()
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    while pending:
        for reply in stub.ServerReflectionInfo(iter([pending.pop()])):
            for raw in reply.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(raw)
                files[file.name] = file
                for name in file.dependency:
                    if name not in known:
                        known.add(name)
                        pending.append(reflection_pb2.ServerReflectionRequest(file_by_filename=name))

    def add(name: str) -> None:
        for dependency in files[name].dependency:
            add(dependency)
        pool.Add(files[name])

    add("likewise/v1/embedding.proto")
    method = pool.FindServiceByName("likewise.v1.EmbeddingService").FindMethodByName("Embed")
    request = message_factory.GetMessageClass(method.input_type)()
    request.images.add().data = photograph_jpegs()[0]  # type: ignore[attr-defined]
    call: Any = channel.unary_unary(
        "/likewise.v1.EmbeddingService/Embed",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    assert call(request, timeout=60).vectors.rows == 1


def test_overload_says_when_to_come_back(tmp_path: Any) -> None:
    with (
        start_server(tmp_path / "data", "--set", "queue_items=2") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub: Any = EmbeddingServiceStub(channel)
        request = epb.EmbedRequest(images=images(2))
        futures = [stub.Embed.future(request, timeout=60) for _ in range(20)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        assert errors
        assert len(errors) < 20
        for error in errors:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            info = error_details_pb2.RetryInfo()
            assert status_of(error).details[0].Unpack(info)
            assert info.retry_delay.ToNanoseconds() > 0
        too_many = refused(stub.Embed, epb.EmbedRequest(images=images(3)))
        assert too_many.code() is grpc.StatusCode.OUT_OF_RANGE
