"""grpc.health.v1 for each service, kept truthful; each change is in the log with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from likewise_server.engine.engine import Engine
from likewise_server.engine.health import Condition
from likewise_server.servicers.context import Context

log = structlog.get_logger()

PERIOD_S = 1.0
LAST_WORD_S = 0.5  # for those who watch to be told that nothing serves any more
EMBEDDING = "likewise.v1.EmbeddingService"
COLLECTIONS = "likewise.v1.CollectionService"
HEADS = "likewise.v1.HeadService"
SERVICES = (EMBEDDING, COLLECTIONS, HEADS)


class Readiness:
    """Looks at the engine once a second. `lost` is set once the process cannot be helped, `why` says what it has."""

    def __init__(self, server: grpc.aio.Server, engine: Engine) -> None:
        self._engine = engine
        self._servicer = _EndingWatches()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        self._told: dict[str, str] = {}  # services to what is wrong with them
        self._task: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()
        self.why = ""

    async def begin(self) -> None:
        """Say that all services serve, and look after them from now on."""
        await self._tell(dict.fromkeys(("", *SERVICES), ""))
        self._task = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """Say that nothing serves any more, at once and for good."""
        if self._task:
            self._task.cancel()
        await self._servicer.enter_graceful_shutdown()
        self._servicer.ended.set()
        self._engine.health.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                condition = await self._engine.health.check()
            except Exception as error:
                log.exception("the server cannot look at itself")
                condition = Condition(embedding=repr(error), store=repr(error))
            await self._tell(_by_service(condition))
            if condition.lost and not self.lost.is_set():
                self.why = condition.lost
                self.lost.set()

    async def _tell(self, troubles: Mapping[str, str]) -> None:
        for service, why in troubles.items():
            before = self._told.get(service)
            if before is None or bool(before) != bool(why):
                status = health_pb2.HealthCheckResponse
                await self._servicer.set(service, status.NOT_SERVING if why else status.SERVING)
                if why:
                    log.error("not serving", service=service or "all", why=why)
                elif before:
                    log.warning("serving again", service=service or "all")
            self._told[service] = why


def _by_service(condition: Condition) -> dict[str, str]:
    """Return what is wrong with each service; the one without a name serves where all do."""
    embedding, store = (condition.lost or why for why in (condition.embedding, condition.store))
    return {EMBEDDING: embedding, COLLECTIONS: store, HEADS: store, "": embedding or store}


class _EndingWatches(health.aio.HealthServicer):  # type: ignore[misc]  # it comes without types
    """grpcio's, but a watch ends with the last word: one that stays open keeps a shutdown waiting in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Tell a service's state whenever it changes, until the server ends."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait({watching, ended}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watching}, timeout=LAST_WORD_S)
            if watching.done():
                watching.result()  # raises what ended it
        finally:
            watching.cancel()
            ended.cancel()
