"""One channel: deadlines, retries with jitter on retryable codes only, and statuses turned into errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from likewise.errors import DeadlineExceeded, LikewiseError, ResourceExhausted, Unavailable, error_class
from likewise.security import Security

Reply = TypeVar("Reply")

FIRST_BACKOFF_S = 0.1
LARGEST_BACKOFF_S = 5.0
OPEN = Security()  # neither TLS nor a token
UNLIMITED = -1  # message sizes: the server's limits decide


class Transport:
    """A channel to one server. Lives on one event loop."""

    def __init__(self, address: str, *, timeout: float, retries: int, security: Security = OPEN) -> None:
        self.address = address
        self.timeout = timeout
        self.retries = retries
        self._tls = security.tls
        self._metadata = security.metadata()
        self.channel = security.channel(
            address,
            [
                ("grpc.max_send_message_length", UNLIMITED),
                ("grpc.max_receive_message_length", UNLIMITED),
                # gRPC's own pauses before it connects again grow to two minutes, past any patience here.
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    async def unary(
        self,
        method: Callable[..., Awaitable[Reply]],
        request: Any,
        *,
        timeout: float | None = None,
        gone_is_done: bool = False,
    ) -> Reply:
        """Call a unary method. Raises the LikewiseError of its status.

        `gone_is_done`: it deletes, so NotFound on a second try means that the first one got through.
        """
        lost = False

        async def once(left: float) -> Reply:
            nonlocal lost
            try:
                return await method(request, timeout=left, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                if gone_is_done and lost and error.code() is grpc.StatusCode.NOT_FOUND:
                    return None  # type: ignore[return-value]  # nobody reads the reply of a deletion
                lost = True
                raise

        return await self._retried(once, timeout)

    async def exchange(self, method: Callable[..., Any], request: Any, *, timeout: float | None = None) -> Any:
        """Send one message on a bidirectional stream and return its one reply."""

        async def once(left: float) -> Any:
            async def requests() -> AsyncIterator[Any]:
                yield request

            replies = [reply async for reply in method(requests(), timeout=left, metadata=self._metadata)]
            if not replies:
                raise Unavailable(f"{self.address} ended the stream without an answer: it may be shutting down")
            return replies[0]

        return await self._retried(once, timeout)

    async def upload(
        self, method: Callable[..., Any], requests: Callable[[], AsyncIterator[Any]], *, timeout: float | None = None
    ) -> Any:
        """Stream the messages of requests(), which begins anew for each attempt, and return the one reply."""

        async def once(left: float) -> Any:
            return await method(requests(), timeout=left, metadata=self._metadata)

        return await self._retried(once, timeout)

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        """Yield what a server streams, for however long it does; closing this ends the call.

        Only the opening is tried again: what came cannot be taken back.
        """
        call: Any = None

        async def opened(left: float) -> Any:
            nonlocal call
            call = method(request, metadata=self._metadata)
            async with asyncio.timeout(left):
                return await call.read()

        try:
            message = await self._retried(opened, None)
            while message is not grpc.aio.EOF:
                yield message
                message = await call.read()
        except grpc.aio.AioRpcError as raw:
            raise self._error(raw) from raw
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.address} did not begin to answer within {self.timeout:g} s") from error
        finally:
            if call is not None:
                call.cancel()

    async def _retried(self, call: Callable[[float], Awaitable[Reply]], timeout: float | None) -> Reply:
        deadline = time.monotonic() + (timeout or self.timeout)
        attempt = 0
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            try:
                return await call(left)
            except (grpc.aio.AioRpcError, Unavailable) as raw:
                error = self._error(raw) if isinstance(raw, grpc.aio.AioRpcError) else raw
                pause = _pause(error, attempt)
                attempt += 1
                if pause is None or attempt > self.retries or time.monotonic() + pause > deadline:
                    raise error from (raw if raw is not error else None)
            await asyncio.sleep(pause)

    def _error(self, raw: grpc.aio.AioRpcError) -> LikewiseError:
        trailing = dict(raw.trailing_metadata() or ())
        request_id = str(trailing.get("x-request-id", ""))
        details = trailing.get("grpc-status-details-bin")
        if isinstance(details, bytes):
            return error_from(status_pb2.Status.FromString(details), request_id)
        if raw.code() is grpc.StatusCode.CANCELLED:  # not by us: that raises asyncio.CancelledError
            return Unavailable(f"{self.address} dropped the call: it may be shutting down", request_id=request_id)
        message = raw.details() or raw.code().name
        if raw.code() is grpc.StatusCode.UNAVAILABLE:
            message = f"no likewise server answers at {self.address} ({message}): start one with `likewise serve`"
            message += ", or give ca= (LIKEWISE_CA) if it speaks TLS" if not self._tls else ""
        return error_class(raw.code().value[0])(message, request_id=request_id)

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()


def error_from(status: status_pb2.Status, request_id: str = "") -> LikewiseError:
    """Return the error that a google.rpc.Status stands for."""
    retry_after: float | None = None
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            retry_after = info.retry_delay.ToNanoseconds() / 1e9
    return error_class(status.code)(status.message, request_id=request_id, retry_after_s=retry_after)


def _pause(error: LikewiseError, attempt: int) -> float | None:
    """Return the seconds to wait before trying again, None where that makes no sense.

    gRPC also says RESOURCE_EXHAUSTED for a message that is too large, so only RetryInfo counts there.
    """
    retryable = isinstance(error, Unavailable) or (
        isinstance(error, ResourceExhausted) and error.retry_after_s is not None
    )
    if not retryable:
        return None
    backoff: float = min(FIRST_BACKOFF_S * 2**attempt, LARGEST_BACKOFF_S)
    return max(backoff, error.retry_after_s or 0.0) * random.uniform(0.7, 1.3)  # noqa: S311  # jitter, no secret
