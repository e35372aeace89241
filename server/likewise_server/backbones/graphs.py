"""CUDA graphs: a compiled network's kernels recorded once for each of a few batch sizes, then started by one call.

A small network on a large GPU spends most of its time in starting kernels; a recording starts them all.
It works on fixed memory, so a batch is padded to the next size that was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import torch
from torch import Tensor

from likewise_server.backbones.replica import Forward

log = structlog.get_logger()

WARM_UPS = 3  # forwards before recording, as torch asks for: allocations and choices of kernels


class Graphs:
    """A forward recorded for some batch sizes. Belongs to the thread of its device."""

    def __init__(self, forward: Forward, device: torch.device, crop: int, sizes: Sequence[int]) -> None:
        """Record. Raises RuntimeError if the network does what cannot be recorded."""
        self._forward = forward
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        for size in sorted(sizes):
            pixels = torch.zeros((size, crop, crop, 3), dtype=torch.uint8, device=device)
            aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no type here
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    forward(pixels)
            torch.cuda.current_stream(device).wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                vectors = forward(pixels)
            self._recorded[size] = (graph, pixels, vectors)

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Return the features of `pixels`; a batch larger than any recorded one runs unrecorded."""
        images = len(pixels)
        size = next((size for size in self._recorded if size >= images), None)
        if size is None:
            return self._forward(pixels)
        graph, given, vectors = self._recorded[size]
        given[:images].copy_(pixels)
        graph.replay()
        return vectors[:images].clone()  # the next batch overwrites them


def recorded(forward: Forward, device: torch.device, crop: int, max_batch: int) -> Forward:
    """Return `forward` as recordings for batches of 1, 2, 4 … `max_batch` on a GPU; as it is where that fails."""
    if device.type != "cuda":
        return forward
    sizes = [size for size in (2**power for power in range(11)) if size < max_batch] + [max_batch]
    try:
        with torch.inference_mode():
            return Graphs(forward, device, crop, sizes)
    except RuntimeError as error:
        log.warning("no CUDA graphs, starting kernels one by one", why=str(error)[:200])
        return forward
