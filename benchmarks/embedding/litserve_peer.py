"""LitServe as the peer: its server's process, and closed-loop HTTP clients as lean as those of gRPC."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from common.processes import START_S, Child
from embedding.images import Photographs, tagged
from embedding.readings import Reading, clocked

BATCH = 16
BATCH_TIMEOUT_S = 0.05
KEPT = 8  # every so many answers, one is kept and checked after the clock
HOST = "127.0.0.1"


def installed() -> bool:
    """Return whether LitServe can be imported here."""
    return find_spec("litserve") is not None


class LitServePeer:
    """A running LitServe; paused while others are measured, because its worker polls."""

    def __init__(self, backbone: str, weights: Path, folder: Path, recipe: str, photographs: Photographs) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self._port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "embedding.litserve_app", backbone, str(weights), str(self._port), recipe]
        self.child = Child(command, folder / f"litserve-{recipe}.log", talks=False)
        self._as_json = recipe == "ordinary"
        self._images = itertools.cycle(photographs.data)
        asyncio.run(self._wait_ready())
        self.child.pause()

    def closed(self, images: int, clients: int) -> Reading:
        """POST one image at a time from clients that each wait for the answer before they post again."""
        self.child.resume()
        try:
            return asyncio.run(self._closed(images, clients))
        finally:
            self.child.pause()

    async def _closed(self, images: int, clients: int) -> Reading:
        left = iter(range(images))
        kept: list[bytes] = []
        connections = [await asyncio.open_connection(HOST, self._port) for _ in range(clients)]
        with clocked(images) as reading:

            async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                for turn in left:
                    started = time.perf_counter()
                    answer = await _post(reader, writer, tagged(next(self._images)))
                    reading.latencies.append(time.perf_counter() - started)
                    if turn % KEPT == 0:
                        kept.append(answer)

            await asyncio.gather(*(client(*connection) for connection in connections))
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()
        for answer in kept:
            _check(answer, as_json=self._as_json)
        return reading

    async def _wait_ready(self) -> None:
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            if self.child.process.poll() is not None:
                break
            try:
                reader, writer = await asyncio.open_connection(HOST, self._port)
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
                writer.close()
            except OSError:
                status = b""
            if b" 200 " in status:
                return
            await asyncio.sleep(0.2)
        self.child.stop()
        raise RuntimeError(f"LitServe did not start; the end of its log:\n{self.child.log_end()}")


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    """Send one request on a connection that stays open, and return the answer's body."""
    head = f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/octet-stream\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer = await reader.readexactly(int(headers["content-length"]))
    if " 200 " not in status:
        raise RuntimeError(f"LitServe answered {status}: {answer[:200]!r}")
    return answer


def _check(answer: bytes, *, as_json: bool) -> None:
    """Raise RuntimeError unless the answer is a vector."""
    vector = json.loads(answer)["embedding"] if as_json else struct.unpack(f"<{len(answer) // 4}f", answer)
    if not any(vector):
        raise RuntimeError("LitServe answered with no vector")
