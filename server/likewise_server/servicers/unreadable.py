"""Bytes that are no message of the method they are sent to: without this gRPC answers UNKNOWN, and logs a traceback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from likewise_server.errors import InvalidArgument, LikewiseError


def forgiving(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Return a deserializer that returns what is wrong instead of raising it, where nobody could answer yet."""
    if deserializer is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError as error:
            return InvalidArgument(
                f"these {len(data)} bytes are no request of this method ({error}): send what likewise/v1/*.proto says"
            )

    return read


def sound(requests: Any) -> Any:
    """Return the request, or the stream of them. Raises InvalidArgument, or the stream does, for what is none."""
    if isinstance(requests, LikewiseError):
        raise requests
    return _each(requests) if hasattr(requests, "__aiter__") else requests


async def _each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield sound(request)
