"""Measure one backbone: its tables in their order, each narrowing what the next one tries."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from likewise_server.backbones import compiling, registry
from likewise_server.backbones.backbone import LARGEST_BATCH, Backbone
from likewise_server.backbones.precision import LEAST_COSINE, least_cosine, native_bf16
from likewise_server.backbones.replica import Finish
from likewise_server.images import Decoding, pixels_of
from likewise_server.tuning import choose, compiled, measure, recommend
from likewise_server.tuning.facts import cores
from likewise_server.tuning.plan import Plan, Say
from likewise_server.tuning.results import BothRate, DecodeRate, Execution, ForwardRate, Measured

DECODING: Decoding = "scaled"
BOTH_CELLS = 1.5  # for one combination of both at once, in each round
FEWEST_BATCHES = 4  # that it must see to say anything


class Bench:
    """Measures one backbone; `run` once."""

    def __init__(self, plan: Plan, name: str, devices: Sequence[torch.device], say: Say) -> None:
        self._plan, self._name, self._devices = plan, name, devices
        self._tell = say
        self._notes: list[str] = []

    def run(self) -> Measured:
        """Return the tables and what follows. Raises what loading the backbone raises."""
        loaded = self._load()
        how = next(iter(loaded.values())).preprocessing
        images, limits = self._plan.pictures.data, self._plan.limits
        pixels = np.stack([pixels_of(data, how, limits, DECODING) for data in images])
        decode = self._decode(next(iter(loaded.values())))
        forward: list[ForwardRate] = []
        for backbone in loaded.values():
            forward += self._sweep(backbone, "eager", pixels)
        backbone = loaded[choose.best_precision(forward)]
        loaded.clear()  # the other one's memory
        forward += self._compiled(backbone, pixels, choose.rows_of(forward, backbone.precision, "eager"))
        both = self._both(backbone, decode, forward)
        best = choose.best_both(both)
        self._say("one image alone")
        alone = measure.latency(
            images, partial(_launch, backbone, pixels), how, limits, DECODING, seconds=2 * self._plan.cell_s
        )
        return Measured(
            backbone=self._name,
            decode=decode,
            forward=forward,
            both=both,
            latency=alone,
            bound=choose.bound(
                choose.decode_at(decode, DECODING, best.decode_threads),
                choose.forward_at(forward, backbone.precision, best.max_batch) * len(set(self._devices)),
                best,
                cores=cores(),
                shared_cores=any(device.type == "cpu" for device in self._devices),
            ),
            images_per_s=best.images_per_s,
            settings=recommend.settings(decode, forward, both, self._notes),
            notes=self._notes,
        )

    def _say(self, what: str) -> None:
        self._tell(f"{self._name}: {what}")

    def _load(self) -> dict[str, Backbone]:
        """Return the backbone by precision: both with "auto", where bf16 is native and keeps the vectors."""
        self._say("loading")
        wanted = self._plan.precision
        first = self._place(wanted)
        if wanted != "auto":
            self._notes.append(f"{wanted} alone was measured, as --precision says")
            return {first.precision: first}
        if first.precision == "bf16":
            return {"fp32": self._place("fp32"), "bf16": first}
        why = f"moves vectors beyond a cosine of {LEAST_COSINE}" if native_bf16(self._devices[0]) else "is not native"
        self._notes.append(f"bf16 {why} here")
        return {"fp32": first}

    def _place(self, precision: str) -> Backbone:
        backbone = registry.load(
            self._name,
            weights_dir=self._plan.weights_dir,
            device=self._devices[0],
            precision=precision,
            decoding=DECODING,
        )
        for device in self._devices[1:]:
            backbone.replicate(device)
        return backbone

    def _decode(self, backbone: Backbone) -> list[DecodeRate]:
        cases: list[tuple[Decoding, int]] = [(DECODING, threads) for threads in thread_counts(cores())]
        rows: list[DecodeRate] = []
        for decoding, threads in [*cases, ("full", 1)]:
            self._say(f"decode and preprocess, {decoding}, {threads} threads")
            rate = measure.decode_rate(
                self._plan.pictures.data,
                backbone.preprocessing,
                self._plan.limits,
                decoding,
                threads=threads,
                seconds=self._plan.cell_s,
            )
            rows.append(DecodeRate(decoding, threads, round(rate, 1)))
        return rows

    def _sweep(self, backbone: Backbone, execution: Execution, pixels: NDArray[np.uint8]) -> list[ForwardRate]:
        """Measure rising batches up to the first that takes too long for a server."""
        rows: list[ForwardRate] = []
        for batch in self._plan.batches:
            self._say(f"forward, {execution} {backbone.precision}, batch {batch}")
            rate = measure.forward_rate(partial(_launch, backbone, pixels), batch, self._plan.cell_s)
            rows.append(ForwardRate(backbone.precision, execution, batch, round(rate, 1)))
            if batch / rate > measure.LONGEST_FORWARD_S:
                break
        return rows

    def _compiled(
        self, backbone: Backbone, pixels: NDArray[np.uint8], eager: Sequence[ForwardRate]
    ) -> list[ForwardRate]:
        """Measure compiled forwards and leave them in use if they beat `eager`; nothing where none can be had."""
        folder = self._plan.compile_into
        if folder is None:
            self._notes.append("compiled forwards were left out, as --no-compile says")
            return []
        reference = _launch(backbone, pixels, len(pixels))()
        try:
            found = compiled.find(backbone, folder)
            if found is None:
                self._say(f"compiling into {folder}, which takes a minute or more, once")
                found = compiled.make(backbone, folder, self._plan.weights_dir, max(self._plan.batches))
            code, facts = found
            compiled.use(backbone, code, LARGEST_BATCH)
            cosine = least_cosine(reference, _launch(backbone, pixels, len(pixels))())
            if cosine < LEAST_COSINE:
                raise compiled.NotCompiledError(f"compiled vectors differ from eager ones, cosine {cosine:.5f}")
            rows = self._sweep(backbone, "compiled", pixels)
        except (RuntimeError, OSError) as error:
            compiled.drop(backbone)
            self._notes.append(f"not compiled, eager forwards only: {error}")
            return []
        if choose.best_execution([*eager, *rows], backbone.precision) == "compiled":
            compiled.use(backbone, code, facts.best_batch)  # as a server will
            better = min(choose.best_batch(rows), max(compiling.BATCHES))
            if better > facts.best_batch:
                self._notes.append(
                    f"compiled forwards are held to batches of {facts.best_batch}, found best when they were compiled; "
                    f"now {better} do more: delete {code.parent} and run this again while nothing else runs"
                )
        else:
            compiled.drop(backbone)
        return rows

    def _both(self, backbone: Backbone, decode: Sequence[DecodeRate], forward: Sequence[ForwardRate]) -> list[BothRate]:
        on_cpu = any(device.type == "cpu" for device in self._devices)
        threads = cores() if on_cpu else choose.best_threads(decode, DECODING)
        table = choose.rows_of(forward, backbone.precision, choose.best_execution(forward, backbone.precision))
        most = min(backbone.best_batch(backbone.ref()), 2 * max(self._plan.batches))
        found: dict[tuple[int, int], list[float]] = {
            pair: [] for pair in choose.combinations(threads, choose.best_batch(table), most)
        }
        # In rounds: what else the machine does meanwhile then bothers all alike.
        for number, ((threads, batch), rates) in itertools.product(range(measure.RUNS), found.items()):
            self._say(f"both at once, round {number + 1}: {threads} decode threads, batches of {batch}")
            slowest = min(choose.fastest(table), choose.decode_at(decode, DECODING, threads).images_per_s)
            work = measure.both_rate(
                self._plan.pictures.data,
                backbone,
                self._plan.limits,
                max_batch=batch,
                decode_threads=threads,
                seconds=max(BOTH_CELLS * self._plan.cell_s, FEWEST_BATCHES * batch / slowest),
            )
            rates.append(asyncio.run(work))
        return [BothRate(*pair, round(statistics.median(rates), 1)) for pair, rates in found.items()]


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4, … and `most`."""
    return sorted({*(2**power for power in range(most.bit_length())), most})


def _launch(backbone: Backbone, pixels: NDArray[np.uint8], batch: int) -> Finish:
    """Start the forward of `batch` images."""
    return backbone.launch([pixels[i % len(pixels)] for i in range(batch)], backbone.ref())
