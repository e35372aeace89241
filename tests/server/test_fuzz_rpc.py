"""Thousands of requests that no client would send, to every RPC: each has a coded answer, and the server goes on."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_proto.v1.collection_pb2_grpc import CollectionServiceStub
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
from likewise_proto.v1.head_pb2_grpc import HeadServiceStub
from likewise_server.errors import Code
from support.access import Answer, ask, rpcs
from support.messages import Maker
from support.pictures import jpeg, photographs, png
from support.server import ServerProcess, start_server

CASES = 180  # to each method
ADMITTED = 300  # images at once, over all callers
STREAMS = 1  # at once, that are not read from
GROWTH = 200 * 2**20  # bytes that the server may take for what a few hostile callers do
ROUND = 25  # after so many the collection is as it was
DEADLINE_S = 30.0
NOT_OURS = {"UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNAVAILABLE", "DATA_LOSS", "ABORTED"}
DETAILS = "grpc-status-details-bin"
METHODS = dict(rpcs())
SMALL = photographs()["chelsea"].resize((64, 64))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start_server(
        tmp_path_factory.mktemp("fuzz") / "data",
        "--precision",
        "fp32",
        "--device",
        "cpu:0",
        "--log-level",
        "warning",
        "--set",
        f"queue_items={ADMITTED}",
    ) as running:
        yield running
        assert running.stop() == 0, running.log.read_text()[-2000:]


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    size = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=size) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def steady(channel: grpc.Channel) -> None:
    """What is asked for after each test, and what no request of these tests names."""
    stub: Any = CollectionServiceStub(channel)
    stub.CreateCollection(cpb.CreateCollectionRequest(name="steady", dim=3))
    items = [_item(f"s{number}", (1, number, 0)) for number in range(4)]
    list(stub.UpsertItems(iter([cpb.UpsertItemsRequest(collection="steady", items=items)])))


@pytest.fixture(autouse=True)
def _goes_on(channel: grpc.Channel, server: ServerProcess) -> Iterator[None]:
    """Whatever a test sent: the server lives, answers with what is right, and has logged no bug."""
    seen = len(server.log.read_text())
    yield
    check(channel)
    log = server.log.read_text()[seen:]
    assert "unexpected error" not in log, log[-4000:]
    # gRPC itself logs one when a caller goes away while it is sent something.
    assert "Traceback" not in log or "ExecuteBatchError" in log, log[-4000:]


def check(channel: grpc.Channel) -> None:
    """Ask for what has one right answer."""
    collections_: Any = CollectionServiceStub(channel)
    embedding: Any = EmbeddingServiceStub(channel)
    found = collections_.Search(
        cpb.SearchRequest(
            collection="steady", vectors=pb.Matrix(data=pack(1, 3.1, 0), dtype=pb.DTYPE_FLOAT32, rows=1, cols=3), k=2
        ),
        timeout=DEADLINE_S,
    )
    assert [hit.info.id for hit in found.results[0].hits] == ["s3", "s2"]
    embedded = embedding.Embed(
        epb.EmbedRequest(images=[pb.Image(data=png(SMALL)), pb.Image(data=b"no"), pb.Image(data=png(SMALL))]),
        timeout=DEADLINE_S,
    )
    rows = np.frombuffer(embedded.vectors.data, "<f4").reshape(3, -1)
    assert np.linalg.norm(rows[0]) > 0
    np.testing.assert_allclose(rows[0], rows[2], rtol=1e-4, atol=1e-5)
    assert [each.index for each in embedded.errors] == [1]


def pack(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _item(name: str, vector: tuple[float, ...], label: str | None = None) -> cpb.UpsertItem:
    info = pb.ItemInfo(id=name, label=label)
    info.attributes.update({"n": len(name), "a": {"b": label}})
    return cpb.UpsertItem(info=info, vector=pack(*vector))


def prepare(channel: grpc.Channel, name: str, content: str) -> None:
    """Make the collection anew that requests name: ten items of two classes, two of none, and a head."""
    stub: Any = CollectionServiceStub(channel)
    heads: Any = HeadServiceStub(channel)
    ask(channel, f"/{CPB}/DeleteCollection", cpb.DeleteCollectionRequest(name=name).SerializeToString())
    request = cpb.CreateCollectionRequest(name=name)
    if content == "vector":
        request.dim = 3
    stub.CreateCollection(request)
    items = [
        *[_item(f"a{i}", (1, i / 9, 0), "cat") for i in range(5)],
        *[_item(f"b{i}", (0, i / 9, 1), "dog") for i in range(5)],
        *[_item(f"c{i}", (0, 1, i)) for i in range(2)],
    ]
    if content == "image":
        for number, item in enumerate(items):
            item.image.data = png(SMALL.rotate(7 * number))
    list(stub.UpsertItems(iter([cpb.UpsertItemsRequest(collection=name, items=items)])))
    heads.TrainHead(hpb.TrainHeadRequest(collection=name, name="h", kind="ncm"), timeout=DEADLINE_S)


CPB = "likewise.v1.CollectionService"


def known(method: str, name: str) -> dict[str, list[str]]:
    """Say which texts mean something, by the names of the fields that they are for."""
    ids = ["a0", "a1", "b0", "b4", "c0"]
    found = {
        **{each: [name] for each in ("collection", "on_collection", "target", "head_collection", "collections")},
        **{each: list(ids) for each in ("id", "ids", "add_ids", "remove_ids")},
        "head": ["h"],
        "label": ["cat", "dog"],
        "kind": ["", "auto", "ncm", "knn", "ridge", "lda", "logreg", "mlp", "ensemble"],
        "layer": ["", "logits"],
        "fingerprint": ["", "external:3"],
        "group_by": ["label", "n", "a.b"],
        "index": ["auto", "exact", "IVF4,Flat", "HNSW8,Flat"],
        "indexed_attributes": ["n", "a.b"],
        "method": ["center", "coral", "ot"],
    }
    # New collections get names of all kinds; what is asked about is mostly there.
    if "Collection" in method and not method.endswith("CreateCollection"):
        found["name"] = [name]
    if "Head" in method:
        found["name"] = ["h"]
    if "Embed" in method or "Backbones" in method:
        found["name"] = ["likewise-tiny"]
    return found


def faults(answer: Answer, descriptor: Any) -> list[str]:
    """Return what is wrong with how a request was answered: by a code that is no answer, whole or for an item."""
    wrong: list[str] = []
    if answer.code in NOT_OURS:
        wrong.append(f"{answer.code}: {answer.message}")
    elif answer.code != "OK":
        details = answer.trailing.get(DETAILS)
        if not isinstance(details, bytes):
            wrong.append(f"{answer.code} without details: {answer.message}")
        elif Code(status_pb2.Status.FromString(details).code).name != answer.code:
            wrong.append(f"{answer.code}, and another code in the details")
        elif not answer.message:
            wrong.append(f"{answer.code} without a message")
    for reply in answer.replies:
        for status in statuses(message_factory.GetMessageClass(descriptor.output_type).FromString(reply)):
            if status.code not in set(Code) - {Code.INTERNAL} or not status.message:
                wrong += [f"an item has {status.code}: {status.message}"]
    return wrong


def statuses(message: Any) -> Iterator[status_pb2.Status]:
    """Yield every google.rpc.Status within a message."""
    if isinstance(message, status_pb2.Status):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else [value]:
            yield from statuses(each)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.rpartition("/")[2])
def test_requests_of_any_content_are_answered_with_a_code(channel: grpc.Channel, method: str) -> None:
    descriptor = METHODS[method]
    name = f"fuzz {method.rpartition('/')[2]}"
    images = [jpeg(SMALL), png(SMALL), png(SMALL)[:200]]
    wrong: list[str] = []
    slowest = (0.0, "")
    for number in range(CASES):
        content = ("vector", "image")[number // ROUND % 2]
        if number % ROUND == 0:
            prepare(channel, name, content)
        rng = random.Random(f"{method} {number}")
        maker = Maker(rng, known(method, name), images, content)
        count = rng.choice((0, 1, 2, 3)) if descriptor.client_streaming else 1
        messages = [maker.message(descriptor.input_type) for _ in range(count)]
        began = time.monotonic()
        answer = ask(channel, method, *(message.SerializeToString() for message in messages))
        slowest = max(slowest, (time.monotonic() - began, f"{number}: {messages}"[:500]))
        wrong += [f"case {number}: {fault}\n{messages}"[:1500] for fault in faults(answer, descriptor)]
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n\n".join(wrong[:5])
    assert slowest[0] < DEADLINE_S, slowest


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.rpartition("/")[2])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, method: str) -> None:
    rng = random.Random(method)
    sound = Maker(rng, {}, [b""], "image").message(METHODS[method].input_type).SerializeToString()
    broken = [
        b"\xff" * 9,
        b"\x0a\xff\xff\xff\xff\x0f",
        sound + b"\x0a\x7f",
        b"\x0a\x02\xff\xfe" * 3,
        *map(rng.randbytes, range(5, 90, 9)),
    ]
    for data in broken:
        answer = ask(channel, method, data)
        if _readable(METHODS[method], data):
            assert not faults(answer, METHODS[method])
        else:
            assert (answer.code, "no " in answer.message) == ("INVALID_ARGUMENT", True), (data, answer)


def _readable(descriptor: Any, data: bytes) -> bool:
    try:
        message_factory.GetMessageClass(descriptor.input_type).FromString(data)
    except DecodeError:
        return False
    return True


def nested(depth: int) -> bytes:
    """Attributes in attributes, as bytes: protobuf's own writer would refuse."""
    value = b"\x08\0"  # null
    for _ in range(depth):
        entry = b"\x0a\1a" + b"\x12" + _length(value) + value
        struct_ = b"\x0a" + _length(entry) + entry
        value = b"\x2a" + _length(struct_) + struct_
    return value


def _length(data: bytes) -> bytes:
    size, made = len(data), b""
    while size >= 0x80:
        made, size = made + bytes([size & 0x7F | 0x80]), size >> 7
    return made + bytes([size])


@pytest.mark.parametrize("depth", [10, 24, 40, 90, 5000])
def test_attributes_in_attributes(channel: grpc.Channel, depth: int) -> None:
    value = nested(depth)
    entry = b"\x0a\1a" + b"\x12" + _length(value) + value
    options = b"\x0a" + _length(entry) + entry
    info = b"\x0a\1x" + b"\x1a" + _length(options) + options
    item = b"\x0a" + _length(info) + info + b"\x1a\x0c" + pack(1, 2, 3)
    upsert = b"\x0a\x06steady" + b"\x12" + _length(item) + item
    head = b"\x0a\x06steady" + b"\x12\1h" + b"\x22" + _length(options) + options
    for method, message in ((f"/{CPB}/UpsertItems", upsert), ("/likewise.v1.HeadService/TrainHead", head)):
        answer = ask(channel, method, message)
        assert not faults(answer, METHODS[method])
    ask(channel, f"/{CPB}/DeleteItems", cpb.DeleteItemsRequest(collection="steady", ids=["x"]).SerializeToString())


@pytest.mark.parametrize("field", ["collection", "where", "group_by"])
def test_texts_of_many_megabytes(channel: grpc.Channel, field: str) -> None:
    method = f"/{CPB}/Search"
    for size, codes in (
        (30 * 2**20, {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}),
        (100 * 2**20, {"RESOURCE_EXHAUSTED"}),
    ):
        fields: dict[str, Any] = {"collection": "steady", "k": 1, "ids": pb.IdList(ids=["s1"]), field: "x" * size}
        answer = ask(channel, method, cpb.SearchRequest(**fields).SerializeToString())
        assert answer.code in codes, answer
        assert len(answer.message) < 2000


def test_metadata_of_any_kind(channel: grpc.Channel) -> None:
    request = epb.GetServerInfoRequest().SerializeToString()
    for key, value in (
        *(("x-request-id", text) for text in ("", "' or 1=1", "x" * 7000, "{}%s\\", "../../x")),
        *(("authorization", text) for text in ("Bearer", "Bearer ", "bearer lw__", "Basic x", "Bearer " + "x" * 7000)),
        ("likewise-bin", bytes(range(256))),
        ("grpc-timeout", "99999999H"),
    ):
        answer = ask(channel, "/likewise.v1.EmbeddingService/GetServerInfo", request, metadata=((key, value),))
        assert answer.code == "OK", (key, value, answer)


def test_methods_that_are_not_there(channel: grpc.Channel) -> None:
    for method in (
        "/likewise.v1.EmbeddingService/Nothing",
        "/x/y",
        "/",
        "/likewise.v1.HeadService/../Embed",
        "/\u00ff/x",
    ):
        assert ask(channel, method, b"").code in ("UNIMPLEMENTED", "INTERNAL") or method == "/", method


def resident(server: ServerProcess) -> int:
    """Return the server's memory in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def upserts(name: str) -> Iterator[cpb.UpsertItemsRequest]:
    """Yield one message after the other, for ever, each with an answer of 10 kB."""
    for number in count():
        yield cpb.UpsertItemsRequest(collection=name, items=[_item("e" * 500 + f"{number % 50}", (1, number, 0))] * 20)


def embeds(data: bytes) -> Iterator[epb.EmbedStreamRequest]:
    for number in count():
        yield epb.EmbedStreamRequest(item_id=number, image=pb.Image(data=data))


@contextmanager
def opened(channel: grpc.Channel, method: str, picture: bytes) -> Iterator[tuple[Any, list[int]]]:
    """Open an endless stream, and tell how many messages were taken from it."""
    stream: Iterator[Any] = upserts("endless") if method == "UpsertItems" else embeds(picture)
    sent = [0]

    def requests() -> Iterator[Any]:
        for request in stream:
            sent[0] += 1
            yield request

    stub: Any = CollectionServiceStub(channel) if method == "UpsertItems" else EmbeddingServiceStub(channel)
    call = getattr(stub, method)(requests())
    try:
        yield call, sent
    finally:
        call.cancel()


@pytest.mark.parametrize("method", ["UpsertItems", "EmbedStream"])
def test_a_stream_that_never_ends_takes_no_more_and_more_memory(
    channel: grpc.Channel, server: ServerProcess, method: str
) -> None:
    prepare(channel, "endless", "vector")
    with opened(channel, method, png(SMALL)) as (call, _):
        replies = sum(1 for _ in islice(call, 200))
        before = resident(server)
        replies += sum(1 for _ in islice(call, 500))
        check(channel)
        assert replies == 700
        assert resident(server) - before < GROWTH


@pytest.mark.parametrize("method", ["UpsertItems", "EmbedStream"])
def test_who_stops_reading_is_not_read_from(channel: grpc.Channel, server: ServerProcess, method: str) -> None:
    prepare(channel, "endless", "vector")
    before = resident(server)
    with ExitStack() as stack:
        counts = [stack.enter_context(opened(channel, method, b"no picture"))[1] for _ in range(STREAMS)]
        seen, deadline = [0], time.monotonic() + DEADLINE_S
        while seen != [sent[0] for sent in counts]:
            assert time.monotonic() < deadline, "the server goes on reading what nobody takes the answers of"
            seen = [sent[0] for sent in counts]
            time.sleep(1)
        assert min(seen) > 0
        check(channel)  # the others are served
        assert resident(server) - before < GROWTH
    recovered(channel)


def recovered(channel: grpc.Channel) -> None:
    """See that nothing is held for callers who are gone: a request that needs all there is comes through."""
    embedding: Any = EmbeddingServiceStub(channel)
    request = epb.EmbedRequest(images=[pb.Image(data=png(SMALL))] * ADMITTED)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert embedding.Embed(request, timeout=DEADLINE_S).vectors.rows == ADMITTED
        except grpc.RpcError as error:
            failed: Any = error
            assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, failed
            assert time.monotonic() < deadline, "what was admitted for callers who are gone is still held"
            time.sleep(0.2)
        else:
            return


VANISHING = """
import sys
import grpc
from likewise_proto.v1 import common_pb2 as pb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1.embedding_pb2_grpc import EmbeddingServiceStub
data = open(sys.argv[2], "rb").read()
stub = EmbeddingServiceStub(grpc.insecure_channel(sys.argv[1]))
def requests():
    while True:
        yield epb.EmbedStreamRequest(image=pb.Image(data=data))
for number, _ in enumerate(stub.EmbedStream(requests())):
    if number == 20:
        print("going", flush=True)
"""


def test_who_vanishes_leaves_nothing_behind(channel: grpc.Channel, server: ServerProcess, tmp_path: Path) -> None:
    picture = tmp_path / "large.jpg"
    picture.write_bytes(jpeg(SMALL.resize((2000, 1500))))
    for _ in range(2):
        command = [sys.executable, "-c", VANISHING, server.address, str(picture)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "going\n"
            client.kill()
    recovered(channel)


def test_idle_streams_are_no_burden(channel: grpc.Channel, server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as other:
        stub: Any = EmbeddingServiceStub(other)
        never = threading.Event()

        def silent() -> Iterator[epb.EmbedStreamRequest]:
            never.wait(DEADLINE_S)
            yield from ()

        calls = [stub.EmbedStream(silent()) for _ in range(60)]
        check(channel)
        for call in calls:
            call.cancel()
        never.set()
