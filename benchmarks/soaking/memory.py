"""Whether the server's memory grows: its resident memory over one long EmbedStream.

After a warm-up, the resident memory of the server's process is read every so many images while one stream runs on.
Each message has bytes of its own, so no cache can answer, and every answer is counted. The drift is the last reading
over the first one; the peak since the start is told too, where the system keeps it. Needs /proc, as Linux has it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.processes import peak_rss_bytes, rss_bytes
from common.server import LikewiseServer
from common.wire import channels as connections
from embedding import wire
from embedding.facts import run_facts
from embedding.images import photographs
from embedding.weights import weights_for
from likewise_proto.v1 import embedding_pb2 as epb

MIB = 2**20


@dataclass(slots=True)
class Soak:
    """What the stream has shown so far."""

    warm: int  # images before the first reading
    every: int
    pid: int
    answered: int = 0
    rss: list[int] = field(default_factory=list)
    first_at: float = 0.0

    def take(self, raw: bytes) -> None:
        """Count one answer, check some, and read the memory when it is time."""
        self.answered += 1
        after = self.answered - self.warm
        if after >= 0 and after % self.every == 0:
            if not self.rss:
                self.first_at = time.perf_counter()
            self.rss.append(rss_bytes(self.pid))
            reply = epb.EmbedStreamResponse.FromString(raw)
            if reply.HasField("error"):
                raise RuntimeError(f"an image failed: {reply.error.message}")
            wire.row(reply.vector)

    def facts(self) -> dict[str, Any]:
        """Return the outcome."""
        first, last = self.rss[0], self.rss[-1]
        return {
            "images": self.answered - self.warm,
            "warm_up_images": self.warm,
            "first_mib": first / MIB,
            "last_mib": last / MIB,
            "max_mib": max(self.rss) / MIB,
            "peak_since_start_mib": peak_rss_bytes(self.pid) / MIB,
            "drift_percent": (last / first - 1) * 100,
            "images_per_s": (self.answered - self.warm) / (time.perf_counter() - self.first_at),
            "rss_mib": [round(size / MIB, 1) for size in self.rss],
            "every": self.every,
        }


def watch(options: argparse.Namespace) -> dict[str, Any]:
    """Run the stream, print one line for each reading on stderr and the outcome on stdout; return it with its facts."""
    pictures = photographs()
    facts = run_facts(pictures)
    with tempfile.TemporaryDirectory(prefix="likewise-soak-") as scratch:
        weights, origin = weights_for(options.backbone, Path(scratch))
        server = LikewiseServer(options.backbone, weights, options.precision, Path(scratch))
        with server.child:
            if not server.settle(options.settle):
                print("the server was still busy when the stream began", file=sys.stderr)
            soak = Soak(options.warm, options.every, server.pid)
            asyncio.run(_stream(server.address, pictures.data, options.warm + options.images, soak))
            outcome = soak.facts()
    print(f"{options.backbone} ({origin} weights), {outcome['images']} images after {options.warm} to warm up")
    print(f"resident memory: first {outcome['first_mib']:.1f} MiB, last {outcome['last_mib']:.1f} MiB,", end=" ")
    print(f"max {outcome['max_mib']:.1f} MiB, drift {outcome['drift_percent']:+.2f} %")
    print(f"{outcome['images_per_s']:.1f} images/s")
    named = {"backbone": options.backbone, "weights": origin, "precision": options.precision}
    return {**facts, **named, "soak": outcome}


async def _stream(address: str, images: list[bytes], count: int, soak: Soak) -> None:
    requests = wire.Requests(images)

    async def messages() -> AsyncIterator[bytes]:
        for item_id in range(count):
            yield requests.stream(item_id)

    async with connections(address, 1) as (channel,):
        async for reply in wire.stream(channel)(messages()):
            readings = len(soak.rss)
            soak.take(reply)
            if len(soak.rss) > readings:
                print(f"{soak.answered - soak.warm:8d} images  {soak.rss[-1] / MIB:8.1f} MiB", file=sys.stderr)
    if soak.answered != count:
        raise RuntimeError(f"{soak.answered} answers to {count} images")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Take what `watch` reads."""
    parser.add_argument("--backbone", default="likewise-tiny", metavar="NAME")
    parser.add_argument("--images", type=int, default=50_000, help="after the warm-up; default 50000")
    parser.add_argument("--warm", type=int, default=2_000, help="images before the first reading; default 2000")
    parser.add_argument("--every", type=int, default=1_000, help="images between two readings; default 1000")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--settle", type=float, default=900.0, help="patience with a server that still prepares, s")
