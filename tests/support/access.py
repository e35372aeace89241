"""Calls as a client in any language makes them: a method's name, bytes, metadata; and the services there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

from likewise_proto.v1 import collection_pb2, embedding_pb2, head_pb2
from support.waiting import until


@dataclass(frozen=True)
class Answer:
    """How a call ended."""

    code: str
    message: str
    replies: list[bytes] = field(default_factory=list)
    trailing: dict[str, str | bytes] = field(default_factory=dict)


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def ask(channel: grpc.Channel, method: str, *messages: bytes, token: str | None = None, metadata: Any = None) -> Answer:
    """Call any method, of whatever kind: on the wire they are all streams."""
    method_of: Any = channel.stream_stream(method)
    call = method_of(iter(messages), metadata=bearer(token) if metadata is None else metadata, timeout=60)
    replies: list[bytes] = []
    try:
        replies.extend(call)
    except grpc.RpcError as error:
        failed: Any = error
        return Answer(failed.code().name, failed.details(), replies, dict(failed.trailing_metadata() or ()))
    return Answer("OK", "", replies)


def rpcs() -> Iterator[tuple[str, MethodDescriptor]]:
    """Yield every RPC of the likewise services: its full name, and what describes it."""
    for module in (embedding_pb2, collection_pb2, head_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


def written(path: Path, text: str) -> str:
    """Wait until the file has the text; return all that it has."""
    until(lambda: path.exists() and text in path.read_text(), f"{text} is not written")
    return path.read_text()
