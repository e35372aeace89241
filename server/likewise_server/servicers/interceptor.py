"""Around every call: a request id, a log line for what failed or was slow, metrics, and errors as statuses."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from likewise_server.errors import Internal, LikewiseError
from likewise_server.servicers.access import HEALTH
from likewise_server.servicers.context import Context
from likewise_server.servicers.convert import status_of
from likewise_server.servicers.unreadable import forgiving, sound

log = structlog.get_logger()

REQUEST_ID = "x-request-id"
DETAILS = "grpc-status-details-bin"
LONGEST_MESSAGE = 1000
SLOW_S = 1.0  # from which on a call that went well is in the log as well
OURS = "/likewise.v1."
CODES = {code.value[0]: code for code in grpc.StatusCode}

OnCall = Callable[[str, str, float], None]  # method, code, seconds


def behaviour_of(handler: Any) -> Callable[..., Any]:
    """Return the function behind a method, of whatever kind it is."""
    found: Callable[..., Any] = (
        handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    )
    return found


def remade(handler: Any, behaviour: Callable[..., Any], deserializer: Callable[[bytes], Any] | None = None) -> Any:
    """Return a handler of the same kind with another behaviour, and perhaps another deserializer."""
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
    else:
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(behaviour, deserializer or handler.request_deserializer, handler.response_serializer)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services but health, which is asked too often for a line each."""

    def __init__(self, on_call: OnCall) -> None:
        self._on_call = on_call

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a method, wrapped."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(HEALTH):
            return handler
        method = details.method.removeprefix(OURS)
        given = str(dict(details.invocation_metadata or ()).get(REQUEST_ID, ""))
        wrap = self._stream if handler.response_streaming else self._unary
        return remade(handler, wrap(behaviour_of(handler), method, given), forgiving(handler.request_deserializer))

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], method: str, given: str) -> Callable[..., Any]:
        async def run(request: Any, context: Context) -> Any:
            call = _Call(self._on_call, method, given)
            try:
                reply = await behaviour(sound(request), context)
            except BaseException as error:  # every way out is counted, then raised or turned
                await call.fail(error, context)
                raise
            call.end("OK", context)
            return reply

        return run

    def _stream(
        self, behaviour: Callable[..., AsyncIterator[Any]], method: str, given: str
    ) -> Callable[..., AsyncIterator[Any]]:
        async def run(request: Any, context: Context) -> AsyncIterator[Any]:
            call = _Call(self._on_call, method, given)
            try:
                async for reply in behaviour(sound(request), context):
                    yield reply
            except BaseException as error:
                await call.fail(error, context)
                raise
            call.end("OK", context)

        return run


class _Call:
    """One call, from its first line to its status."""

    def __init__(self, on_call: OnCall, method: str, given: str) -> None:
        self._on_call = on_call
        self._method = method
        # Only what is safe to print is taken over from the caller.
        self._id = given if re.fullmatch(r"[\w.:/-]{1,64}", given, re.ASCII) else os.urandom(8).hex()
        self._started = time.monotonic()

    def end(self, code: str, context: Context | None, **facts: object) -> None:
        seconds = time.monotonic() - self._started
        if context is not None:
            context.set_trailing_metadata(((REQUEST_ID, self._id),))
        self._on_call(self._method, code, seconds)
        level = logging.DEBUG if code == "OK" and seconds < SLOW_S else logging.INFO
        if not logging.getLogger().isEnabledFor(level):
            return  # a line costs the event loop much beside a small call
        log.log(level, "call", method=self._method, code=code, ms=round(seconds * 1e3, 1), request_id=self._id, **facts)

    async def fail(self, error: BaseException, context: Context) -> None:
        """Answer with the error's status; what is not ours becomes a fixed text, its details go to the log."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            # Nobody reads what is set on its context, and that of a stream that was dropped may be gone: touching it
            # can crash the process.
            self.end("CANCELLED", None)
            return
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # a stream's requests are read in a group of tasks
        if not isinstance(error, LikewiseError):
            log.error("unexpected error", method=self._method, request_id=self._id, exc_info=error)
            error = Internal(f"internal error; the server's log has the details under request id {self._id}")
        if len(error.message) > LONGEST_MESSAGE:  # what names something long; trailers hold 16 KiB
            error = type(error)(error.message[:LONGEST_MESSAGE] + "…", retry_after_s=error.retry_after_s)
        self.end(error.code.name, context, message=error.message[:200])
        details = status_of(error).SerializeToString()
        trailing = ((REQUEST_ID, self._id), (DETAILS, details))
        await context.abort(CODES[int(error.code)], error.message, trailing)
