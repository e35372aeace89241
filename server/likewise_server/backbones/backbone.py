"""A network, frozen on a device in a precision, that turns uint8 pixels into vectors of known spaces."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from likewise_server.backbones import features, weights
from likewise_server.backbones.base import LOGITS, BackboneRef, Network, Space
from likewise_server.backbones.folding import fold
from likewise_server.errors import NotFound
from likewise_server.images import DECODING

Precision = Literal["fp32", "bf16"]
SCHEME = 1  # of the fingerprint itself


class Backbone:
    """One loaded network. `forward` belongs to one thread; everything else may be called from any."""

    def __init__(self, name: str, network: Network, device: torch.device, precision: Precision) -> None:
        self.name = name
        self.network = network
        self.device = device
        self.precision = precision
        self.preprocessing = network.preprocessing
        module = network.module.eval().requires_grad_(requires_grad=False)
        # The classifier is no part of a feature, so a file without one gives the same space.
        self._trunk_hash = weights.tensor_hash(module, without=network.classifier_prefix or "\0")
        self._full_hash = weights.tensor_hash(module)
        # After hashing: rounding differs between machines, and the fingerprint must not.
        fold(module)
        self.layers = features.layer_names(network)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        module.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
        if network.norm is not None:
            network.norm.to(device=device, dtype=dtype)
        self._dtype = dtype
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self.preprocessing.mean, device=device).reshape(shape) * 255
        self._scale = 1 / (torch.tensor(self.preprocessing.std, device=device).reshape(shape) * 255)
        self._spaces: dict[BackboneRef, Space] = {}
        self._lock = threading.Lock()

    def ref(self, layer: str = "", pooling: str = "") -> BackboneRef:
        """Return the reference to a feature of this backbone."""
        return BackboneRef(self.name, layer, pooling)

    def forward(self, pixels: NDArray[np.uint8], ref: BackboneRef) -> NDArray[np.float32]:
        """Return (n, dim) float32 features of (n, crop, crop, 3) uint8 `pixels`.

        Raises InvalidArgument for a layer or pooling this network does not have.
        """
        with torch.inference_mode():
            # NHWC memory seen as NCHW is what torch calls channels-last: no copy.
            x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
            x = ((x.float() - self._mean) * self._scale).to(self._dtype)
            vectors: NDArray[np.float32] = features.extract(self.network, x, ref).cpu().numpy()
        return vectors

    def learn_space(self, ref: BackboneRef) -> Space:
        """Return the space of `ref`, running one forward pass to find its dimension. Device thread only."""
        known = self._spaces.get(ref)
        if known:
            return known
        blank = np.zeros((1, self.preprocessing.crop, self.preprocessing.crop, 3), np.uint8)
        dim = self.forward(blank, ref).shape[1]
        space = Space(self.fingerprint(ref), dim, ref)
        with self._lock:
            self._spaces[ref] = space
        return space

    def space(self, ref: BackboneRef) -> Space | None:
        """Return the space of `ref` if it has been learned."""
        if ref.name != self.name:
            raise NotFound(f"{ref.name} is not {self.name}")
        return self._spaces.get(ref)

    def fingerprint(self, ref: BackboneRef) -> str:
        """Return the hash of everything that decides the vectors of `ref`."""
        facts = {
            "scheme": SCHEME,
            "architecture": self.name,
            "weights": self._full_hash if LOGITS in ref.layer else self._trunk_hash,
            "layer": ref.layer,
            "pooling": "" if ref.pooling == self.network.pooling and not ref.layer else ref.pooling,
            "decoding": DECODING,
            "preprocessing": asdict(self.preprocessing),
            "normalisation": "none",
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def current_hash(self) -> str:
        """Return a hash of the weights as they are now; equal before and after any work."""
        return weights.tensor_hash(self.network.module)
