"""Every RPC under every kind of token, against a real server; what may be done is what docs/security.md says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from likewise import Client
from likewise.errors import NotFound, PermissionDenied, Unauthenticated
from likewise_proto.v1 import collection_pb2 as cpb
from likewise_proto.v1 import embedding_pb2 as epb
from likewise_proto.v1 import head_pb2 as hpb
from likewise_server import tokens
from likewise_server.servicers.access import RULES
from support.access import ask, rpcs, written
from support.pictures import ROOT, photograph_jpegs
from support.server import ServerProcess, start_server

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Check"
COLLECTIONS = "/likewise.v1.CollectionService"
HEADS = "/likewise.v1.HeadService"
EMBED = "/likewise.v1.EmbeddingService/Embed"
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
FORGED = "lw_" + "0" * 12 + "_" + "a" * 64


@dataclass
class Guarded:
    """A server with tokens: one for each scope, one with all, and others."""

    process: ServerProcess
    secrets: dict[str, str]
    channel: grpc.Channel

    def client(self, name: str) -> Client:
        return Client(self.process.address, token=self.secrets[name])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    data = tmp_path_factory.mktemp("guarded") / "data"
    data.mkdir()
    made = {scope: tokens.create(data, scope, scopes=[scope]) for scope in tokens.SCOPES}
    made["all"] = tokens.create(data, "all", scopes=tokens.SCOPES)
    made["pets"] = tokens.create(data, "pets", scopes=tokens.SCOPES, collections=["pets-*"])
    made["revoked"] = tokens.create(data, "revoked", scopes=tokens.SCOPES)
    tokens.revoke(data, "revoked")
    with start_server(data, "--precision", "fp32") as process, grpc.insecure_channel(process.address) as channel:
        yield Guarded(process, made, channel)
        assert process.stop() == 0, process.log.read_text()[-2000:]


def promised() -> dict[str, set[str]]:
    """What docs/security.md says: the scopes of each RPC by its short name."""
    found: dict[str, set[str]] = {}
    table = (ROOT / "docs/security.md").read_text().partition("| call | one of these scopes |")[2].partition("\n\n")[0]
    for calls, scopes in re.findall(r"^\| ([\w, ]+) \| ([\w, ]+) \|$", table, re.MULTILINE):
        found.update({call: set(scopes.split(", ")) for call in calls.split(", ")})
    return found


def test_the_table_has_every_rpc_and_nothing_else() -> None:
    assert set(RULES) == {name for name, _ in rpcs()} | {REFLECTION}


def test_the_page_has_every_rpc_and_nothing_else() -> None:
    health = {method.name for method in health_pb2.DESCRIPTOR.services_by_name["Health"].methods}
    reflection = {method.name for method in reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods}
    assert set(promised()) == {method.name for _, method in rpcs()} | health | reflection
    assert {call for call, scopes in promised().items() if scopes == {"none"}} == health


def test_every_field_that_names_a_collection_is_looked_at() -> None:
    def fields(message: Descriptor, prefix: str = "") -> Iterator[str]:
        for field in message.fields:
            own_name = field.name == "name" and message.name.endswith("CollectionRequest")
            if own_name or field.name in ("target", "collections") or re.search(r"collection$", field.name):
                yield prefix + field.name
            elif field.message_type is not None and field.message_type.name == "Adaptation":
                yield from fields(field.message_type, f"{field.name}.")

    for name, method in rpcs():
        assert set(fields(method.input_type)) == set(RULES[name].collections), name


@pytest.mark.parametrize("holder", [*tokens.SCOPES, "all", "revoked", "forged", "malformed", "nobody"])
def test_every_rpc_does_what_the_page_says(guarded: Guarded, holder: str) -> None:
    secret = {"forged": FORGED, "malformed": "letmein", "nobody": None, **guarded.secrets}[holder]
    known = holder in {*tokens.SCOPES, "all"}
    has = set(tokens.SCOPES) if holder == "all" else {holder}
    table = promised()
    for name, method in rpcs():
        answer = ask(guarded.channel, name, b"", token=secret)
        needed = table[method.name]
        if not known:
            assert answer.code == "UNAUTHENTICATED", name
        elif needed == {"any"} or needed & has:
            assert answer.code not in REFUSED, (name, answer)
        else:
            assert answer.code == "PERMISSION_DENIED", (name, answer)
            assert all(scope in answer.message for scope in needed), answer.message
            assert holder in answer.message
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    assert ask(guarded.channel, REFLECTION, listing, token=secret).code == ("OK" if known else "UNAUTHENTICATED")
    assert ask(guarded.channel, HEALTH, b"", token=secret).code == "OK"


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "{}")],
        [("authorization", "Basic {}")],
        [("authorization", "Bearer {}x")],
        [("authorization", "Bearer")],
        [("authorization", "")],
        [("x-token", "{}")],
    ],
)
def test_a_token_in_the_wrong_place_is_none(guarded: Guarded, metadata: list[tuple[str, str]]) -> None:
    given = [(name, value.format(guarded.secrets["all"])) for name, value in metadata]
    info = "/likewise.v1.EmbeddingService/GetServerInfo"
    assert ask(guarded.channel, info, b"", metadata=given).code == "UNAUTHENTICATED"
    assert (
        ask(guarded.channel, info, b"", metadata=[("authorization", f"bearer  {guarded.secrets['all']}")]).code == "OK"
    )


def test_the_secret_of_another_token_does_not_do(guarded: Guarded) -> None:
    mine, other = guarded.secrets["embed"].split("_"), guarded.secrets["all"].split("_")
    answer = ask(guarded.channel, EMBED, b"", token=f"lw_{other[1]}_{mine[2]}")
    assert answer.code == "UNAUTHENTICATED"


def test_what_is_refused_is_not_read(guarded: Guarded) -> None:
    """Bytes that are no message, and more of them than a message may have: had they been read, that would show."""
    garbage, huge = b"\xff" * 100, bytes(80 * 2**20)
    assert ask(guarded.channel, EMBED, garbage, token=guarded.secrets["embed"]).code == "INVALID_ARGUMENT"
    assert ask(guarded.channel, EMBED, huge, token=guarded.secrets["embed"]).code == "RESOURCE_EXHAUSTED"
    for payload in (garbage, huge):
        assert ask(guarded.channel, EMBED, payload).code == "UNAUTHENTICATED"
        assert ask(guarded.channel, EMBED, payload, token=guarded.secrets["search"]).code == "PERMISSION_DENIED"


def naming(*names: str) -> list[tuple[str, Any]]:
    """One request for each field of each RPC that names a collection, the other fields naming the first of `names`."""
    fine, wrong = names
    return [
        (f"{COLLECTIONS}/CreateCollection", cpb.CreateCollectionRequest(name=wrong, dim=4)),
        (f"{COLLECTIONS}/GetCollection", cpb.GetCollectionRequest(name=wrong)),
        (f"{COLLECTIONS}/UpdateCollection", cpb.UpdateCollectionRequest(name=wrong)),
        (f"{COLLECTIONS}/DeleteCollection", cpb.DeleteCollectionRequest(name=wrong)),
        (f"{COLLECTIONS}/CheckCollection", cpb.CheckCollectionRequest(collection=wrong)),
        (f"{COLLECTIONS}/CheckCollection", cpb.CheckCollectionRequest()),
        (f"{COLLECTIONS}/UpsertItems", cpb.UpsertItemsRequest(collection=wrong)),
        (f"{COLLECTIONS}/Search", cpb.SearchRequest(collection=wrong, k=1)),
        (f"{HEADS}/Classify", hpb.ClassifyRequest(collection=wrong)),
        (f"{HEADS}/TrainHead", hpb.TrainHeadRequest(collection=fine, adaptation=hpb.Adaptation(target=wrong))),
        (f"{HEADS}/EvaluateHead", hpb.EvaluateHeadRequest(collection=fine, on_collection=wrong)),
        (f"{HEADS}/RankBackbones", hpb.RankBackbonesRequest(collections=[fine, wrong])),
        (f"{HEADS}/SelectSource", hpb.SelectSourceRequest(collection=fine, target=wrong)),
        (f"{HEADS}/PseudoLabel", hpb.PseudoLabelRequest(collection=fine, head_collection=wrong)),
    ]


def test_a_limited_token_names_no_other_collection(guarded: Guarded) -> None:
    with guarded.client("all") as lw:
        lw.create_collection("cars", dim=4).add_vectors(["a"], [[1.0, 0, 0, 0]])
        lw.create_collection("pets-cats", dim=4).add_vectors(["a"], [[1.0, 0, 0, 0]])
    for wrong in ("cars", "no-such", "xpets-", "Pets-cats"):  # there or not: the answer is the same
        for name, request in naming("pets-cats", wrong):
            answer = ask(guarded.channel, name, request.SerializeToString(), token=guarded.secrets["pets"])
            assert answer.code == "PERMISSION_DENIED", (name, request, answer)
            assert "pets-*" in answer.message
    with guarded.client("pets") as lw:
        assert [info.name for info in lw.collections()] == ["pets-cats"]
        assert lw.collection("pets-cats").count() == 1
        lw.create_collection("pets-dogs", dim=4)
        lw.delete_collection("pets-dogs")
    with guarded.client("all") as lw:
        assert {"cars", "pets-cats"} <= {info.name for info in lw.collections()}
        assert lw.collection("cars").count() == 1
        lw.delete_collection("cars")
        lw.delete_collection("pets-cats")


def test_a_stream_that_turns_to_another_collection_ends(guarded: Guarded) -> None:
    with guarded.client("all") as lw:
        cars, pets = lw.create_collection("cars", dim=1), lw.create_collection("pets-birds", dim=1)
        item = cpb.UpsertItem(vector=b"\0\0\x80?")
        item.info.id = "a"
        messages = [
            cpb.UpsertItemsRequest(collection=name, items=[item], fingerprint=pets.fingerprint).SerializeToString()
            for name in ("pets-birds", "", "cars")
        ]
        answer = ask(guarded.channel, f"{COLLECTIONS}/UpsertItems", *messages, token=guarded.secrets["pets"])
        assert answer.code == "PERMISSION_DENIED"
        assert "'cars'" in answer.message
        assert (cars.count(), pets.count()) == (0, 1)
        lw.delete_collection("cars")
        lw.delete_collection("pets-birds")


def test_whoever_may_write_but_not_create_uses_what_is_there(guarded: Guarded) -> None:
    with guarded.client("all") as owner, guarded.client("write") as writer:
        owner.create_collection("shelf", dim=1)
        assert writer.create_collection("shelf", dim=1, exist_ok=True).add_vectors(["a"], [[1.0]]).count("created") == 1
        with pytest.raises(PermissionDenied, match="admin"):
            writer.create_collection("other", dim=1, exist_ok=True)
        with pytest.raises(PermissionDenied, match="search"):
            writer.collection("shelf").count()
        owner.delete_collection("shelf")


def test_tokens_come_and_go_while_the_server_runs(guarded: Guarded) -> None:
    data = guarded.process.data
    secret = tokens.create(data, "passing", scopes=["embed"])
    info = epb.GetServerInfoRequest().SerializeToString()

    def code() -> str:
        return ask(guarded.channel, "/likewise.v1.EmbeddingService/GetServerInfo", info, token=secret).code

    assert within_a_second(lambda: code() == "OK")
    whole = (data / "tokens.json").read_bytes()
    (data / "tokens.json").write_bytes(whole[:100])
    time.sleep(0.5)
    assert code() == "OK"  # a damaged file changes nothing
    (data / "tokens.json").write_bytes(whole)
    tokens.revoke(data, "passing")
    assert within_a_second(lambda: code() == "UNAUTHENTICATED")
    with Client(guarded.process.address, token=secret) as lw, pytest.raises(Unauthenticated, match="tokens create"):
        lw.info()


def within_a_second(happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.02)
    return False


def test_writes_and_refusals_are_in_the_audit_log(guarded: Guarded) -> None:
    path = guarded.process.data / "audit.jsonl"
    with guarded.client("all") as lw, guarded.client("search") as reader:
        audited = lw.create_collection("audited")
        assert len(audited.add([*photograph_jpegs()[:2], b"no picture"], ids=["a", "b", "c"]).errors) == 1
        audited.label({"a": "x"})
        audited.search(id="a", k=1)
        audited.delete(["a", "no such"])
        with pytest.raises(PermissionDenied):
            reader.delete_collection("audited")
        lw.delete_collection("audited")
        with pytest.raises(NotFound):
            lw.delete_collection("audited-never")
    lines = [json.loads(line) for line in written(path, "audited-never").splitlines()]
    about = [line for line in lines if line.get("collection", "").startswith("audited") or line.get("who") == "search"]
    facts = [(e["who"], e["method"].partition("/")[2], e.get("count"), e["code"]) for e in about]
    for expected in [
        ("all", "CreateCollection", None, "OK"),
        ("all", "UpsertItems", 2, "OK"),
        ("all", "LabelItems", 1, "OK"),
        ("all", "DeleteItems", 1, "OK"),
        ("search", "DeleteCollection", None, "PERMISSION_DENIED"),
        ("all", "DeleteCollection", None, "OK"),
        ("all", "DeleteCollection", None, "NOT_FOUND"),
    ]:
        assert expected in facts, expected
    assert not any(fact[1] == "Search" and fact[3] == "OK" for fact in facts)
    assert all(line["peer"] == "ipv4:127.0.0.1" and line["time"].endswith("+00:00") for line in about)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_log_has_a_line_for_a_call_that_failed_and_none_for_one_that_went_well(guarded: Guarded) -> None:
    before = len(guarded.process.log.read_text())
    with guarded.client("all") as lw:
        lw.info()
        with pytest.raises(NotFound):
            lw.delete_collection("not in the log before")
    lines = [json.loads(line) for line in guarded.process.log.read_text()[before:].splitlines()]
    calls = [line for line in lines if line["event"] == "call"]
    assert [(call["method"], call["code"]) for call in calls] == [("CollectionService/DeleteCollection", "NOT_FOUND")]
    assert calls[0]["request_id"]


def test_nothing_said_or_written_has_a_secret(guarded: Guarded) -> None:
    """After a session with good and bad tokens: log, audit log and answers have none of them; hashes stay put."""
    said = ""
    for secret in guarded.secrets.values():
        for name, _ in rpcs():
            answer = ask(guarded.channel, name, b"", token=secret)
            said += f"{answer.message} {answer.replies} {answer.trailing}"
    said += ask(guarded.channel, EMBED, b"", metadata=[("authorization", guarded.secrets["all"])]).message
    with guarded.client("all") as lw, pytest.raises(NotFound):
        lw.delete_collection("the-last-of-them")
    texts = written(guarded.process.data / "audit.jsonl", "the-last-of-them")
    texts += guarded.process.log.read_text()
    assert "PERMISSION_DENIED" in texts
    assert "DeleteItems" in texts
    for secret in guarded.secrets.values():
        for part in (secret, secret.split("_")[2]):
            assert part not in said
            assert part not in texts
            assert not contained(part, guarded.process.data)
    for token in tokens.listed(guarded.process.data):
        assert token.sha256 not in said + texts


def contained(text: str, folder: Path) -> bool:
    return any(text.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
