"""A trained network becomes a backbone of its own: its weights, and a note that says what they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from likewise_server.backbones import registry, weights
from likewise_server.backbones.base import Network
from likewise_server.errors import AlreadyExists
from likewise_training.checkpoints import write_whole


def check_name(name: str, weights_dir: Path, *, force: bool) -> None:
    """Raise AlreadyExists if a backbone has the name: the server's own for good, one's own unless `force`."""
    if name in registry.known_names():
        raise AlreadyExists(f"{name} is a name of the server's own: choose another with --name")
    found = weights.find(weights_dir, name)
    if found is not None and not (force and found.suffix == ".safetensors"):
        raise AlreadyExists(f"{found} is there already: choose another --name, or replace a .safetensors with --force")


def tensors(network: Network, architecture: str) -> dict[str, Tensor]:
    """Return the state dict of the feature, named as the architecture's published files name it.

    The classifier is left out, for the layers below it have changed; a norm inside it that is part of the feature
    stays.
    """
    prefix = network.classifier_prefix
    of_norm = {id(value) for value in network.norm.state_dict(keep_vars=True).values()} if network.norm else set()
    kept: dict[str, Tensor] = {}
    for key, value in network.module.state_dict(keep_vars=True).items():
        name = key.removeprefix("model.") if architecture.startswith("timm/") else key
        if prefix and name.startswith(f"{prefix}."):
            if id(value) not in of_norm:
                continue
            name = prefix + name.removeprefix(f"{prefix}.classifier")  # the gate's name for what it guards
        kept[name] = value.detach().cpu().contiguous()
    return kept


def publish(
    network: Network, architecture: str, name: str, weights_dir: Path, origin: Mapping[str, Any], *, half: bool = False
) -> Path:
    """Write `weights_dir/name.safetensors` and `.json`; return the former. Raises OSError.

    The note comes first, with the hash of the weights: until these are there too, there is no backbone of the name.
    `half` stores float16, in half the room; it is loaded as float32.
    """
    state = tensors(network, architecture)
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    data = save(state, {"format": "pt", "backbone": name})
    note = {
        "architecture": architecture,
        **dataclasses.asdict(network.preprocessing),
        "sha256": hashlib.sha256(data).hexdigest(),
        "origin": dict(origin),
    }
    path = weights_dir / f"{name}.safetensors"
    text = json.dumps(note, indent=1) + "\n"
    write_whole(path.with_name(f"{name}.json"), lambda stream: stream.write(text.encode()))
    write_whole(path, lambda stream: stream.write(data))
    return path
