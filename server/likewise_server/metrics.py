"""Prometheus metrics: what came, what it cost, and how full the batches were."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from likewise_server.engine.engine import Engine

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

    def on_call(self, method: str, code: str, seconds: float) -> None:
        """Count one RPC."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def on_batch(self, backbone: str, images: int, seconds: float) -> None:
        """Count one forward pass."""
        self._images.labels(backbone).inc(images)
        self._batch.labels(backbone).observe(images)
        self._forward.labels(backbone).observe(seconds)

    def watch(self, engine: Engine) -> None:
        """Read the queue's state whenever the metrics are scraped."""
        queued = Gauge("likewise_queued_images", "Images waiting for the device", registry=self.registry)
        queued.set_function(engine.batcher.queued)
        age = Gauge("likewise_queue_age_seconds", "Wait of the oldest queued image", registry=self.registry)
        age.set_function(engine.batcher.oldest_wait)

    def serve(self, host: str, port: int) -> int:
        """Answer scrapes on host:port; return the port, of which 0 asks for a free one."""
        server, _thread = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
