"""likewise-tiny: its weights are in the package, so it needs no download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from safetensors.torch import load

from likewise_server.backbones import tiny, weights
from likewise_server.backbones.base import Network


def load_network(path: Path | None = None) -> Network:
    """Return the bundled network, or its architecture with the weights in `path`.

    Raises FailedPrecondition if the file is not one of this architecture.
    """
    if path is None:
        state = load(files("likewise_server.backbones").joinpath("weights/likewise-tiny.safetensors").read_bytes())
    else:
        state = weights.read(path)
    network = untrained()
    network.source = path.name if path else "bundled"
    network.preprocessing = (weights.sidecar(path) if path else None) or tiny.PREPROCESSING
    whole = {name: tensor.float() for name, tensor in state.items()}
    weights.fit(network.module, whole, optional="\0", source=path.name if path else "likewise-tiny.safetensors")
    return network


def untrained() -> Network:
    """Return the network with random weights."""
    return Network(tiny.build().eval(), tiny.PREPROCESSING, feature_layer="features")
