"""A network, frozen in a precision on one or several devices, that turns pixels into vectors of known spaces."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from likewise_server.backbones import features, weights
from likewise_server.backbones.base import LOGITS, BackboneRef, Network, Space
from likewise_server.backbones.folding import fold
from likewise_server.backbones.replica import Finish, Forward, Pixels, Precision, Replica, Vectors
from likewise_server.errors import NotFound
from likewise_server.images import Decoding, decoding_tag

SCHEME = 1  # of the fingerprint itself
LARGEST_BATCH = 1024


class Backbone:
    """One loaded network. `launch` and `forward` belong to the thread of their device; the rest to any."""

    def __init__(
        self,
        name: str,
        network: Network,
        device: torch.device,
        precision: Precision,
        *,
        decoding: Decoding = "scaled",
    ) -> None:
        """Take over `network`."""
        self.name = name
        self.network = network
        self.precision = precision
        self.decoding: Decoding = decoding
        self.preprocessing = network.preprocessing
        module = network.module.eval().requires_grad_(requires_grad=False)
        # The classifier is no part of a feature, so a file without one gives the same space.
        self._trunk_hash = weights.tensor_hash(module, without=network.classifier_prefix or "\0")
        self._full_hash = weights.tensor_hash(module)
        # After hashing: rounding differs between machines, and the fingerprint must not.
        fold(module)
        self.layers = features.layer_names(network)
        self.replicas = [Replica(network, device, precision)]
        self._spaces: dict[BackboneRef, Space] = {}
        self._batches: dict[BackboneRef, int] = {}
        self._lock = threading.Lock()

    def replicate(self, device: torch.device) -> None:
        """Put another copy of the network on `device`, which may be one that has one already."""
        self.replicas.append(Replica(twin(self.network), device, self.precision))

    @property
    def device(self) -> str:
        """The devices that it runs on, for people."""
        return ",".join(dict.fromkeys(str(replica.device) for replica in self.replicas))

    @property
    def threads(self) -> int:
        """The threads that a forward has on a CPU: its copies share the cores."""
        copies = sum(replica.device.type == "cpu" for replica in self.replicas)
        return max(1, (os.cpu_count() or 1) // max(1, copies))

    def ref(self, layer: str = "", pooling: str = "") -> BackboneRef:
        """Return the reference to a feature of this backbone."""
        return BackboneRef(self.name, layer, pooling)

    def launch(self, pixels: Sequence[Pixels], ref: BackboneRef, device: int = 0) -> Finish:
        """Start a forward on the replica with index `device`; see Replica.launch."""
        return self.replicas[device].launch(pixels, ref)

    def forward(self, pixels: NDArray[np.uint8], ref: BackboneRef) -> Vectors:
        """Return (n, dim) float32 features of (n, crop, crop, 3) uint8 `pixels` from the first replica.

        Raises InvalidArgument for a layer or pooling this network does not have.
        """
        return self.launch(list(pixels), ref)()

    def learn_space(self, ref: BackboneRef) -> Space:
        """Return the space of `ref`, running one forward pass to find its dimension. First device's thread only."""
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

    def swap(self, ref: BackboneRef, forwards: Sequence[Forward], best_batch: int) -> None:
        """From now on compute `ref` by compiled `forwards`, one for each replica, best in batches of `best_batch`."""
        self._batches[ref] = best_batch
        for replica, forward in zip(self.replicas, forwards, strict=True):
            replica.compiled[ref] = forward

    def compiled(self, ref: BackboneRef) -> bool:
        """Return whether `ref` runs compiled."""
        return all(ref in replica.compiled for replica in self.replicas)

    def best_batch(self, ref: BackboneRef) -> int:
        """Return the batch beyond which images/s stop growing, LARGEST_BATCH where nobody has measured."""
        return self._batches.get(ref, LARGEST_BATCH)

    def fingerprint(self, ref: BackboneRef) -> str:
        """Return the hash of everything that decides the vectors of `ref`."""
        facts = {
            "scheme": SCHEME,
            "architecture": self.name,
            "weights": self._full_hash if LOGITS in ref.layer else self._trunk_hash,
            "layer": ref.layer,
            "pooling": "" if ref.pooling == self.network.pooling and not ref.layer else ref.pooling,
            "decoding": decoding_tag(self.decoding),
            "preprocessing": asdict(self.preprocessing),
            "normalisation": "none",
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def current_hash(self) -> str:
        """Return a hash of the weights as they are now; equal before and after any work."""
        return weights.tensor_hash(self.network.module)


def twin(network: Network) -> Network:
    """Copy a network, its classifier's gate and its norm being the copied module's own."""
    module, gate, norm = copy.deepcopy((network.module, network.gate, network.norm))
    return dataclasses.replace(network, module=module, gate=gate, norm=norm)
