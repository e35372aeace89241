"""All measurements of one backbone: everything started once, then rounds in which each takes its turn."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.processes import Child, worker
from common.server import LikewiseServer
from embedding.arrivals import OpenReading, open_loop
from embedding.images import Photographs
from embedding.litserve_peer import LitServePeer
from embedding.load import Load
from embedding.readings import Reading
from embedding.weights import weights_for

CEILING_BATCHES = (8, 16, 32)
LOOP_BATCHES = (1, 16)
CLIENTS = (1, 8, 32)
TOGETHER = 16  # images a message, of the stream that has several
LOADS = (0.5, 0.8, 1.2)
WARM = 32  # images of the uncounted turn that each measurement begins with
STEP = 32  # images: whole batches of any size
ONE_BY_ONE = ("loop_1", "loop_16", "clients_1")  # whose rate a few images tell
LEAST = 4 * max(CLIENTS)  # images of the others, so that filling and emptying the queues weighs little
PIECES = 64  # images taken apart in each round
LEAST_COSINE = 0.999  # between a vector of the server and the same one computed without it

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    rounds: int
    seconds: float  # of one measurement, about
    open_seconds: float  # of one open loop; 0 leaves them out
    precision: str
    litserve: tuple[str, ...]  # recipes
    settle_s: float


@dataclass(slots=True)
class Results:
    """What the rounds of one backbone gave."""

    backbone: str
    facts: dict[str, Any]
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    pieces: list[dict[str, float]] = field(default_factory=list)
    loops: dict[float, list[OpenReading]] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """Return the median images per second of a measurement, None if it was not made."""
        readings = self.readings.get(name)
        return statistics.median(reading.rate for reading in readings) if readings else None

    def ceiling(self) -> tuple[float, int]:
        """Return the rate and the batch size of the best ceiling."""
        return max((self.rate(f"ceiling_{batch}") or 0.0, batch) for batch in CEILING_BATCHES)

    def median(self, values: Callable[[Reading], Any], name: str) -> float:
        """Return the median over the rounds of something about a measurement."""
        return float(statistics.median(values(reading) for reading in self.readings[name]))


Measurement = Callable[[int], Reading]


def measure(backbone: str, photographs: Photographs, plan: Plan, scratch: Path, say: Say) -> Results:
    """Start everything, check that server and ceiling do the same work, and run the rounds."""
    with contextlib.ExitStack() as stack:
        folder = scratch / backbone.replace("/", "_")
        folder.mkdir()
        weights, origin = weights_for(backbone, scratch)
        say("starting the server")
        server = LikewiseServer(backbone, weights, plan.precision, folder)
        stack.callback(server.child.stop)
        load = Load(server.address, photographs)
        load.bulk(WARM)
        settled = server.settle(plan.settle_s)
        arguments = (backbone, str(weights))
        say("starting the ceiling and the plain loop")
        local = stack.enter_context(
            worker(
                "embedding.local",
                *arguments,
                plan.precision,
                str(folder / "data"),
                log=folder / "local.log",
                # Decoding beside forwards, as in the server, is faster so: the ceiling should be as high as can be.
                environment={"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
            )
        )
        plain = stack.enter_context(worker("embedding.plain", *arguments, log=folder / "plain.log"))
        measurements = dict(_in_process(local, plain)) | dict(_on_server(load))
        for recipe in plan.litserve:
            say(f"starting LitServe ({recipe})")
            peer = LitServePeer(backbone, weights, folder, recipe, photographs)
            stack.callback(peer.child.stop)
            measurements[f"litserve_{recipe}"] = lambda images, peer=peer: peer.closed(images, max(CLIENTS))  # type: ignore[misc]  # binds it now
        cosine = _cosine(load.vector(0), np.asarray(local.ask("vector", number=0)["vector"], np.float32))
        command = " ".join(server.command).replace(str(weights), "WEIGHTS").replace(str(folder), "FOLDER")
        facts = {"weights": origin, **local.hello, "server": command}
        facts |= {"settled": settled, "cosine_server_ceiling": cosine}
        results = Results(backbone, facts)
        _rounds(results, measurements, local, plan, say)
        _open_loops(results, server.address, photographs, plan, say)
        return results


def _in_process(local: Child, plain: Child) -> Iterator[tuple[str, Measurement]]:
    def asking(child: Child, what: str, batch: int) -> Measurement:
        def run(images: int) -> Reading:
            answer = child.ask(what, images=images, batch=batch)
            return Reading(answer["images"], answer["seconds"])

        return run

    for batch in CEILING_BATCHES:
        yield f"ceiling_{batch}", asking(local, "ceiling", batch)
    for batch in LOOP_BATCHES:
        yield f"loop_{batch}", asking(plain, "loop", batch)


def _on_server(load: Load) -> Iterator[tuple[str, Measurement]]:
    def closed(clients: int) -> Measurement:
        return lambda images: load.closed(images, clients)

    for clients in CLIENTS:
        yield f"clients_{clients}", closed(clients)
    yield "bulk", load.bulk
    yield f"bulk_{TOGETHER}", lambda images: load.bulk(images, TOGETHER)
    yield "library", load.library


def _rounds(results: Results, measurements: dict[str, Measurement], local: Child, plan: Plan, say: Say) -> None:
    """Give every measurement a turn in every round, so that what else the machine does falls on all alike."""
    images = {}
    for name, run in measurements.items():
        say(f"warming {name}")
        rate = run(WARM).rate
        images[name] = max(WARM if name in ONE_BY_ONE else LEAST, round(rate * plan.seconds / STEP) * STEP)
    local.ask("pieces", images=8)
    for turn in range(plan.rounds):
        for name, run in measurements.items():
            say(f"round {turn + 1} of {plan.rounds}: {name}")
            results.readings.setdefault(name, []).append(run(images[name]))
        results.pieces.append(local.ask("pieces", images=PIECES))


def _open_loops(results: Results, address: str, photographs: Photographs, plan: Plan, say: Say) -> None:
    """Offer parts of the capacity that the rounds have found."""
    capacity = results.rate(f"clients_{max(CLIENTS)}")
    if not plan.open_seconds or capacity is None:
        return
    for turn in range(plan.rounds):
        for part in LOADS:
            say(f"open loop at {part:.0%}, {turn + 1} of {plan.rounds}")
            reading = open_loop(address, photographs, capacity=capacity, load=part, seconds=plan.open_seconds)
            results.loops.setdefault(part, []).append(reading)


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Raise RuntimeError if the two vectors of one image are not the same, up to the precision's rounding."""
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    if cosine < LEAST_COSINE:
        raise RuntimeError(f"the server and the ceiling do not do the same work: cosine {cosine:.4f} of one image")
    return cosine
