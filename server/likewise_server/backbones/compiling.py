"""Compile one feature of a backbone into a file: what `python -m likewise_server.backbones.compiling` does.

It runs in a process of its own, beside the server and at a lower priority: a compiler takes a minute
and both cores, and if it, or its code, crashes, the server goes on in eager mode. Only code that has
run here and gave the eager vectors is kept.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from likewise_server.backbones import artifacts, attention, registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import BackboneRef
from likewise_server.backbones.compiled import CompiledCpu
from likewise_server.backbones.precision import LEAST_COSINE, least_cosine, probes
from likewise_server.backbones.replica import Feature, Forward
from likewise_server.child import end_with_parent
from likewise_server.images import Decoding

NICENESS = 10
BATCHES = (1, 2, 4, 8, 16, 32)
ENOUGH = 0.95  # of the best rate: the smallest batch that reaches it is the best batch
SECONDS_EACH = 0.5  # of measuring for each batch size
LEAST_ROUNDS = 2  # the first of which warms up
TRIAL = 4  # images of the batch by which compiled is compared with eager
SLOWER = 1.1  # than eager: no gain worth two ways of running; what is closer is noise


class Task(BaseModel):
    """What to compile: sent as JSON on standard input."""

    name: str
    ref: str
    weights_dir: Path | None
    device: str
    precision: str
    decoding: Decoding
    folder: Path
    max_batch: int
    threads: int  # that a forward will have on a CPU


def main() -> None:
    """Read a task from standard input and keep its code and facts in the artifact folder."""
    os.nice(NICENESS)
    task = Task.model_validate_json(sys.stdin.readline())
    end_with_parent()
    device = torch.device(task.device)
    backbone = registry.load(
        task.name, weights_dir=task.weights_dir, device=device, precision=task.precision, decoding=task.decoding
    )
    compile_feature(backbone, BackboneRef.parse(task.ref), task.folder, task.max_batch, task.threads)


def compile_feature(
    backbone: Backbone, ref: BackboneRef, folder: Path, max_batch: int, threads: int
) -> dict[str, object]:
    """Compile for forwards of `threads` threads, check against eager, measure, and keep.

    Returns the facts; raises what failed.
    """
    torch.set_num_threads(threads)  # code for one thread has no parallel loops
    started = time.monotonic()
    replica = backbone.replicas[0]
    pictures = probes(backbone.preprocessing)
    with tempfile.TemporaryDirectory() as scratch:
        code = _compiled(replica.feature(ref), torch.from_numpy(pictures).to(replica.device), Path(scratch))
        forward = load(code, replica.device)
        eager = backbone.forward(pictures, ref)
        with torch.inference_mode():
            batch = torch.from_numpy(pictures).to(replica.device)
            cosines = [least_cosine(eager, forward(batch).cpu().numpy())]
            cosines.append(least_cosine(eager[:1], forward(batch[:1]).cpu().numpy()))
            if min(cosines) < LEAST_COSINE:
                raise RuntimeError(f"compiled vectors differ from eager ones: cosine {min(cosines):.5f}")
            trial = batch[: min(TRIAL, max_batch)]
            # On a CPU by processor time: beside other work the clock on the wall says little.
            clock = time.process_time if replica.device.type == "cpu" else time.perf_counter
            quick, slow = _seconds([partial(run, trial) for run in (forward, replica.feature(ref))], clock)
            if quick > SLOWER * slow:
                raise RuntimeError(
                    f"compiled is slower than eager: {quick:.3f} s for {len(trial)} images, not {slow:.3f} s"
                )
            rates = _rates(forward, batch, max_batch)
        best = min(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))
        facts: dict[str, object] = {
            "cosine": round(min(cosines), 6),
            "best_batch": best,
            "images_per_s": {str(size): round(rate, 1) for size, rate in rates.items()},
            "seconds": round(time.monotonic() - started, 1),
        }
        artifacts.keep(folder, artifacts.key_of(backbone, ref, threads), code, facts)
    return facts


def load(code: Path, device: torch.device) -> Forward:
    """Return what runs a file that compile_feature kept."""
    if device.type == "cpu":
        return CompiledCpu(code)
    package: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(code), device_index=device.index or 0)  # noqa: SLF001  # documented, for all its name
    return package


def _compiled(feature: Feature, pictures: Tensor, scratch: Path) -> Path:
    """Return a file with code for any number of images."""
    import torch._inductor.config as options  # noqa: PLC0415  # takes a second

    options.freezing = True  # weights become constants in the layout that their kernels like best
    with torch.no_grad(), attention.batch_first():
        many = torch.export.Dim("images", min=2, max=1024)
        program = torch.export.export(feature.eval(), (pictures,), dynamic_shapes={"pixels": {0: many}})
        package = Path(
            torch._inductor.aoti_compile_and_package(program, package_path=str(scratch / "network.pt2"))  # noqa: SLF001
        )
    if pictures.device.type != "cpu":
        return package
    with zipfile.ZipFile(package) as archive:
        library = next(name for name in archive.namelist() if name.endswith(".so"))
        return Path(archive.extract(library, scratch))


def _rates(forward: Forward, pictures: Tensor, max_batch: int) -> dict[int, float]:
    """Return images/s by batch size."""
    sizes = [size for size in BATCHES if size <= max_batch]
    batches = [pictures.repeat(-(-size // len(pictures)), 1, 1, 1)[:size].contiguous() for size in sizes]
    seconds = _seconds([partial(forward, batch) for batch in batches])
    return {size: size / each for size, each in zip(sizes, seconds, strict=True)}


def _seconds(forwards: Sequence[Callable[[], Tensor]], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return the shortest time of each: other work only adds to it, and as they take turns, to all alike."""
    best = [float("inf")] * len(forwards)
    ends = time.monotonic() + SECONDS_EACH * len(forwards)
    rounds = 0
    while rounds < LEAST_ROUNDS or time.monotonic() < ends:
        for index, forward in enumerate(forwards):
            began = clock()
            forward().cpu()
            best[index] = min(best[index], clock() - began)
        rounds += 1
    return best


if __name__ == "__main__":
    main()
