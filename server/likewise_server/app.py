"""Put the server together from its settings, run it, and take it down without losing accepted work."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from likewise_proto.v1 import collection_pb2_grpc, embedding_pb2_grpc, head_pb2_grpc
from likewise_server import tls
from likewise_server.audit import Audit
from likewise_server.backbones import registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.engine.engine import Engine, Sizes, build
from likewise_server.errors import FailedPrecondition, Internal
from likewise_server.images import ImageLimits
from likewise_server.metrics import Metrics
from likewise_server.readiness import SERVICES, Readiness
from likewise_server.servicers.collections import CollectionServicer
from likewise_server.servicers.crowd import CrowdInterceptor
from likewise_server.servicers.embedding import EmbeddingServicer
from likewise_server.servicers.guard import AccessInterceptor
from likewise_server.servicers.heads import HeadServicer
from likewise_server.servicers.interceptor import CallInterceptor
from likewise_server.servicers.limits import Limits
from likewise_server.settings import Settings
from likewise_server.store import open_store
from likewise_server.store.types import Store
from likewise_server.tokens import Tokens

log = structlog.get_logger()

CLOSE_S = 3.0  # that threads and data get at the end even where accepted work took all of the grace time
# A peer that has vanished, with a cable or a machine, is noticed within these, and what it asked for is dropped.
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 20_000
LEAST_PING_MS = 10_000  # between the pings of a client that keeps its own connection alive
# Python's default is 5 ms. A search takes the interpreter back some ten times, and while another thread writes items
# each time took as long as that; ingestion itself gains a third.
SWITCH_S = 0.0005


@dataclass(slots=True)
class Running:
    """A server that listens on `port`."""

    server: grpc.aio.Server
    engine: Engine
    readiness: Readiness
    port: int
    draining: asyncio.Event
    audit: Audit

    async def stop(self, grace_s: float, *, close_s: float | None = None) -> None:
        """Say not ready, answer what was accepted within `grace_s` seconds, then let go of everything.

        With `close_s`, that may take what is left of `grace_s`, and so many seconds at least, before it is left to
        the end of the process: all that was acknowledged is on disk.
        """
        ends = time.monotonic() + grace_s
        await self.readiness.end()
        self.draining.set()  # streams stop reading, answer what they have read, and end
        await self.engine.stop_compiling()
        await self.server.stop(grace_s)
        closing = asyncio.create_task(asyncio.to_thread(self._close))
        patience = None if close_s is None else max(close_s, ends - time.monotonic())
        done, _ = await asyncio.wait({closing}, timeout=patience)
        if done:
            closing.result()
        else:
            log.warning("not everything has ended in time; nothing that counts is lost")

    def _close(self) -> None:
        self.engine.close()
        self.audit.close()


def package_version() -> str:
    """Return the installed version."""
    try:
        return version("likewise")
    except PackageNotFoundError:
        return "unknown"


def load_backbones(settings: Settings) -> dict[str, Backbone]:
    """Load every backbone asked for. Raises what tells the person which weights to put where."""
    devices = registry.choose_devices(settings.device)
    backbones: dict[str, Backbone] = {}
    for name in settings.backbone:
        backbone = registry.load(
            name,
            weights_dir=settings.weights_dir,
            device=devices[0],
            precision=settings.precision,
            decoding=settings.decoding,
        )
        for device in devices[1:]:
            backbone.replicate(device)
        log.info(
            "backbone loaded",
            name=name,
            source=backbone.network.source,
            device=backbone.device,
            precision=backbone.precision,
        )
        backbones[name] = backbone
    return backbones


async def start(settings: Settings) -> Running:
    """Open the store, load the backbones, prove them with a forward each, and listen.

    Raises FailedPrecondition when asked to listen beyond this machine without TLS and tokens, unless `insecure`.
    """
    tokens = Tokens(settings.data, required=settings.require_tokens)
    credentials = _credentials(settings, tokens)
    metrics = Metrics()
    store = await asyncio.to_thread(open_store, settings.data, gpu_bytes=settings.search_gpu_bytes)
    try:
        backbones = await asyncio.to_thread(load_backbones, settings)
        engine = _engine(settings, backbones, store, metrics)
    except BaseException:
        store.close()
        raise
    audit = Audit(settings.data, settings.audit_bytes)
    try:
        metrics.watch(engine)
        if settings.metrics_port is not None:
            log.info("metrics", port=_serve_metrics(metrics, settings.host, settings.metrics_port))
        await engine.ready()
        if settings.compile == "before" and engine.compiler:
            await engine.compiler.join()
        draining = asyncio.Event()
        crowd = CrowdInterceptor(settings.max_calls)
        interceptors = [CallInterceptor(metrics.on_call), crowd, AccessInterceptor(tokens, audit)]
        server, readiness = _server(settings, engine, interceptors, draining)
        port = _listen(server, settings, credentials)
        await server.start()
    except BaseException:
        await engine.stop_compiling()
        await asyncio.to_thread(engine.close)
        audit.close()
        raise
    await readiness.begin()
    return Running(server, engine, readiness, port, draining, audit)


def _credentials(settings: Settings, tokens: Tokens) -> grpc.ServerCredentials | None:
    """Return what the port is served with. Raises FailedPrecondition where it would be open to others."""
    files = tls.Files.of(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    if not settings.is_loopback():
        missing = [] if files else ["--tls-cert and --tls-key"]
        missing += [] if tokens.required() else ["a token (`likewise tokens create`) or --require-tokens"]
        if missing and not settings.insecure:
            raise FailedPrecondition(
                f"--host {settings.host} is reachable from other machines: give {' and '.join(missing)} "
                "(docs/security.md), or keep 127.0.0.1, or say --insecure where something in front authenticates"
            )
        if missing:
            log.warning("open to other machines", host=settings.host, tls=bool(files), tokens=tokens.required())
    return tls.server_credentials(files) if files else None


def _engine(settings: Settings, backbones: dict[str, Backbone], store: Store, metrics: Metrics) -> Engine:
    return build(
        backbones,
        store,
        limits=ImageLimits(settings.max_image_bytes, settings.max_pixels),
        decoding=settings.decoding,
        sizes=Sizes(
            max_batch=settings.max_batch,
            decode_threads=settings.decode_threads or os.cpu_count() or 1,
            decode_in=settings.decode_in,
            decode_timeout_s=settings.decode_timeout_s,
            queue_items=settings.queue_items,
            queue_bytes=settings.queue_bytes,
            queue_pixels=settings.queue_pixels,
            queue_interactive=settings.queue_interactive,
            interactive_wait_s=settings.interactive_wait_s,
            cache_bytes=settings.cache_bytes,
        ),
        observer=metrics,
        compile_into=None if settings.compile == "off" else settings.data / "compiled",
        weights_dir=settings.weights_dir,
    )


def _server(
    settings: Settings, engine: Engine, interceptors: list[grpc.aio.ServerInterceptor], draining: asyncio.Event
) -> tuple[grpc.aio.Server, Readiness]:
    limits = Limits(
        max_message_bytes=settings.max_message_bytes,
        max_items=settings.max_items,
        max_image_bytes=settings.max_image_bytes,
        max_pixels=settings.max_pixels,
        max_k=settings.max_k,
        stream_window=settings.stream_window,
        max_hits=settings.max_hits,
    )
    server = grpc.aio.server(
        interceptors=interceptors,
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a pool
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # a minute, whatever the line before says
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", LEAST_PING_MS),
        ],
    )
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(
        EmbeddingServicer(engine, limits, draining, package_version()), server
    )
    collection_pb2_grpc.add_CollectionServiceServicer_to_server(CollectionServicer(engine, limits, draining), server)
    head_pb2_grpc.add_HeadServiceServicer_to_server(HeadServicer(engine, limits, draining), server)
    readiness = Readiness(server, engine)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, readiness


def _serve_metrics(metrics: Metrics, host: str, port: int) -> int:
    try:
        return metrics.serve(host, port)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot listen on {host}:{port} for metrics ({error.strerror}): choose another --metrics-port"
        ) from error


def _listen(server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials | None) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.port}"
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        port = 0
        cause: Exception | None = error
    else:
        cause = None
    if not port:
        raise FailedPrecondition(
            f"cannot listen on {settings.host}:{settings.port}: is another server there? Choose another --port"
        ) from cause
    return int(port)


def serve(settings: Settings, announce: Callable[[int], None]) -> int:
    """Serve until SIGINT or SIGTERM; call `announce` with the port once ready. Return the status to exit with.

    A signal while loading ends that; a second one ends the process at once. Raises what `start` raises, and Internal
    after a device has failed for good. The event loop is not waited for: what hangs must not hold up the end.
    """
    sys.setswitchinterval(SWITCH_S)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(_run(settings, announce))


async def _run(settings: Settings, announce: Callable[[int], None]) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, number, stopping)
    loading = asyncio.create_task(start(settings))
    await _either(loading, stopping)
    if not loading.done():
        log.info("stopping before all was loaded")
        loading.cancel()
        await asyncio.wait({loading}, timeout=CLOSE_S)  # what a thread loads cannot be called off
        return 0
    running = loading.result()
    # What is loaded stays. Looking through it for garbage, as happens now and then, stops all threads for 100 ms.
    gc.collect()
    gc.freeze()
    if not stopping.is_set():
        announce(running.port)
        await _either(asyncio.create_task(running.readiness.lost.wait()), stopping)
    log.info("stopping", grace_s=settings.grace_s)
    await running.stop(settings.grace_s, close_s=CLOSE_S)
    log.info("stopped")
    if running.readiness.why:
        raise Internal(f"ended because only a new process can help: {running.readiness.why}. Start it again")
    return 0


def _on_signal(number: int, stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(128 + number)  # as the shell says of one that a signal ended
    stopping.set()


async def _either(task: asyncio.Task[Any], event: asyncio.Event) -> None:
    """Return once the task is done or the event set; a waiting task goes on."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
