"""How many calls are inside at once: what is over it is told to come back, so that what waits has a bound.

Stands inside CallInterceptor, which turns what is raised here into a status.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from likewise_server.errors import ResourceExhausted
from likewise_server.servicers.access import HEALTH
from likewise_server.servicers.context import Context
from likewise_server.servicers.interceptor import behaviour_of, remade

RETRY_S = 1.0


class CrowdInterceptor(grpc.aio.ServerInterceptor):
    """Lets in `most` calls at once, a stream being one; health is always answered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a method, counted."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(HEALTH):
            return handler
        counted = self._stream if handler.response_streaming else self._unary
        return remade(handler, counted(behaviour_of(handler)))

    def _unary(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def run(request: Any, context: Context) -> Any:
            with self._counted():
                return await behaviour(request, context)

        return run

    def _stream(self, behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
        async def run(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted():
                async for reply in behaviour(request, context):
                    yield reply

        return run

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._inside >= self._most:
            raise ResourceExhausted(
                f"{self._inside} calls are under way already: retry after {RETRY_S:g} s", retry_after_s=RETRY_S
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
