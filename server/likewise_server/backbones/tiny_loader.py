"""likewise-tiny: its weights are in the package, so it needs no download."""

from __future__ import annotations

from importlib.resources import files

from safetensors.torch import load

from likewise_server.backbones import tiny, weights
from likewise_server.backbones.base import Network


def load_network() -> Network:
    """Return the bundled network. Raises FailedPrecondition if the packaged file is not the one built."""
    data = files("likewise_server.backbones").joinpath("weights/likewise-tiny.safetensors").read_bytes()
    module = tiny.build()
    state = {name: tensor.float() for name, tensor in load(data).items()}
    weights.fit(module, state, optional="\0", source="likewise-tiny.safetensors")
    return Network(module.eval(), tiny.PREPROCESSING, feature_layer="features", source="bundled")
