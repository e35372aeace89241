"""One copy of a network on one device: pixels in, vectors out, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from likewise_server.backbones import features
from likewise_server.backbones.base import BackboneRef, Network

Precision: TypeAlias = Literal["fp32", "bf16"]
Pixels: TypeAlias = NDArray[np.uint8] | Tensor  # (crop, crop, 3) uint8; a tensor where the device decodes
Vectors: TypeAlias = NDArray[np.float32]
Finish: TypeAlias = Callable[[], Vectors]


class Forward(Protocol):
    """A compiled feature: (n, crop, crop, 3) uint8 on its device in, (n, dim) float32 there out."""

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Run the network."""


class Feature(nn.Module):
    """The whole way from uint8 pixels to a feature as one module: what is run, and what is compiled."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: Network, ref: BackboneRef, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = network.module
        self._network, self._ref, self._dtype = network, ref, dtype
        device = next(network.module.parameters()).device
        mean, std = (torch.tensor(values, device=device) for values in _statistics(network))
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (std.reshape(1, 3, 1, 1) * 255))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (n, dim) float32 features of (n, crop, crop, 3) uint8 `pixels`."""
        # NHWC memory seen as NCHW is what torch calls channels-last: no copy.
        x = pixels.permute(0, 3, 1, 2)
        x = ((x.float() - self.mean) * self.scale).to(self._dtype)
        return features.extract(self._network, x, self._ref)


class Replica:
    """Belongs to the thread of its device."""

    def __init__(self, network: Network, device: torch.device, precision: Precision) -> None:
        """Take over `network`, whose batch norms are folded already."""
        self.network, self.device = network, device
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        network.module.to(device=device, dtype=self._dtype).to(memory_format=torch.channels_last)
        if network.norm is not None:
            network.norm.to(device=device, dtype=self._dtype)
        self.compiled: dict[BackboneRef, Forward] = {}
        self._features: dict[BackboneRef, Feature] = {}
        self._copies = _stream(device) if device.type == "cuda" else None

    def feature(self, ref: BackboneRef) -> Feature:
        """Return the module that computes `ref` eagerly."""
        if ref not in self._features:
            self._features[ref] = Feature(self.network, ref, self._dtype)
        return self._features[ref]

    def launch(self, pixels: Sequence[Pixels], ref: BackboneRef, *, eager: bool = False) -> Finish:
        """Start the forward of some images; what is returned waits for their (n, dim) float32 features.

        Raises InvalidArgument for a layer or pooling this network does not have.
        """
        forward: Forward = self.feature(ref) if eager else self.compiled.get(ref) or self.feature(ref)
        with torch.inference_mode():
            if self._copies is None:
                vectors = forward(_stacked(pixels)).numpy()
                return lambda: vectors
            return self._launch_cuda(forward, pixels, self._copies)

    def _launch_cuda(self, forward: Forward, pixels: Sequence[Pixels], copies: torch.cuda.Stream) -> Finish:
        """Copy in on a stream of its own while the batch before computes, and out without stopping for it."""
        compute = torch.cuda.current_stream(self.device)
        if isinstance(pixels[0], Tensor) and pixels[0].device == self.device:
            batch = _stacked(pixels)
        else:
            pinned = _stacked(pixels).pin_memory()
            with torch.cuda.stream(copies):
                batch = pinned.to(self.device, non_blocking=True)
            compute.wait_stream(copies)
            batch.record_stream(compute)
        out = forward(batch)
        host = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        host.copy_(out, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no type here
        done.record(compute)

        def finish() -> Vectors:
            done.synchronize()
            return host.numpy()

        return finish


def _stacked(pixels: Sequence[Pixels]) -> Tensor:
    """Return one (n, crop, crop, 3) uint8 tensor: on the CPU, unless all are on one device already."""
    if all(isinstance(image, np.ndarray) for image in pixels):
        return torch.from_numpy(np.stack(pixels))
    tensors = [torch.from_numpy(image) if isinstance(image, np.ndarray) else image for image in pixels]
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    return torch.stack(tensors)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no type here


def _statistics(network: Network) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    return network.preprocessing.mean, network.preprocessing.std
