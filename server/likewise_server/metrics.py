"""Prometheus metrics: what came, what it cost, and how full the batches were."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from likewise_server.engine.engine import Engine
from likewise_server.pipeline.observer import Stage
from likewise_server.pipeline.queues import Idle, Reason

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """One registry per server, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter("likewise_calls", "RPCs by method and code", ["method", "code"], registry=self.registry)
        self._seconds = Histogram(
            "likewise_call_seconds", "Duration of RPCs", ["method"], buckets=SECONDS, registry=self.registry
        )
        self._images = Counter("likewise_images", "Images embedded", ["backbone"], registry=self.registry)
        self._batch = Histogram(
            "likewise_batch_size", "Images per forward pass", ["backbone"], buckets=BATCHES, registry=self.registry
        )
        self._forward = Histogram(
            "likewise_forward_seconds", "Duration of forwards", ["backbone"], buckets=SECONDS, registry=self.registry
        )
        self._closed = Counter(
            "likewise_batches", "Forward passes by why the batch closed", ["backbone", "reason"], registry=self.registry
        )
        stages = Histogram(
            "likewise_stage_seconds", "Time of an image in a stage", ["stage"], buckets=SECONDS, registry=self.registry
        )
        names: tuple[Stage, ...] = get_args(Stage)
        self._stages = {name: stages.labels(name) for name in names}
        self._busy = Counter(
            "likewise_device_busy_seconds", "Time that a device computed", ["device"], registry=self.registry
        )
        self._idle = Counter(
            "likewise_device_idle_seconds", "Time that a device waited", ["device", "reason"], registry=self.registry
        )
        lookups = Counter(
            "likewise_cache_lookups", "Pictures looked up in the cache", ["outcome"], registry=self.registry
        )
        self._hits, self._misses = lookups.labels("hit"), lookups.labels("miss")

    @cache  # noqa: B019  # one Metrics lives as long as its server; finding the labels costs more than counting
    def _of_call(self, method: str, code: str) -> tuple[Counter, Histogram]:
        return self._calls.labels(method, code), self._seconds.labels(method)

    def on_call(self, method: str, code: str, seconds: float) -> None:
        """Count one RPC."""
        counter, histogram = self._of_call(method, code)
        counter.inc()
        histogram.observe(seconds)

    def on_stage(self, stage: Stage, seconds: float) -> None:
        """Note what one image spent in a stage."""
        self._stages[stage].observe(seconds)

    def on_batch(self, backbone: str, device: str, images: int, seconds: float, reason: Reason) -> None:
        """Count one forward pass."""
        self._images.labels(backbone).inc(images)
        self._batch.labels(backbone).observe(images)
        self._forward.labels(backbone).observe(seconds)
        self._closed.labels(backbone, reason).inc()
        self._busy.labels(device).inc(seconds)

    def on_idle(self, device: str, why: Idle, seconds: float) -> None:
        """Note that a device had nothing to do."""
        self._idle.labels(device, why).inc(seconds)

    def on_lookup(self, *, hit: bool) -> None:
        """Count one look into the embedding cache."""
        (self._hits if hit else self._misses).inc()

    def watch(self, engine: Engine) -> None:
        """Read the queue's state whenever the metrics are scraped."""
        embedder, batcher = engine.embedder, engine.batcher
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "likewise_queued_images": ("Images waiting for the decoder or a device", batcher.queues.waiting),
            "likewise_queue_age_seconds": ("Wait of the oldest queued image", batcher.queues.oldest_wait),
            "likewise_admitted_images": ("Images between arrival and reply", lambda: embedder.admission.held.items),
            "likewise_admitted_bytes": ("Encoded bytes of those", lambda: embedder.admission.held.bytes),
            "likewise_admitted_pixels": ("Pixels of those", lambda: embedder.admission.held.pixels),
            "likewise_refused_images": ("Images told to come back later, so far", lambda: embedder.admission.refused),
            "likewise_images_per_second": ("Images finished while busy", embedder.admission.images_per_s),
            "likewise_cache_bytes": ("Memory of the embedding cache", lambda: batcher.cache.bytes),
        }
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)

    def serve(self, host: str, port: int) -> int:
        """Answer scrapes on host:port; return the port, of which 0 asks for a free one."""
        server, _thread = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
