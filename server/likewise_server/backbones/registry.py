"""Backbone names and who loads them. A family is one file beside this one and one line here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from likewise_server.backbones import weights
from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import Network
from likewise_server.backbones.precision import place
from likewise_server.errors import InvalidArgument
from likewise_server.images import Decoding

Loader = Callable[[str, Path | None], Network]

BUNDLED = "likewise-tiny"


def _tiny(_architecture: str, path: Path | None) -> Network:
    from likewise_server.backbones import tiny_loader  # noqa: PLC0415

    return tiny_loader.load_network(path)


def _timm(architecture: str, path: Path | None) -> Network:
    from likewise_server.backbones import timm_models  # noqa: PLC0415

    return timm_models.load(architecture, path)


def _torchvision(architecture: str, path: Path | None) -> Network:
    from likewise_server.backbones import torchvision_models  # noqa: PLC0415

    return torchvision_models.load(architecture, path)


def _loader(architecture: str) -> Loader:
    if architecture == BUNDLED:
        return _tiny
    return _timm if architecture.startswith("timm/") else _torchvision


def known_names() -> list[str]:
    """Return the names that can be served, without the hundreds of timm's."""
    from likewise_server.backbones import torchvision_models  # noqa: PLC0415

    return [BUNDLED, *torchvision_models.names()]


def network(name: str, weights_dir: Path | None) -> Network:
    """Return the network `name` as its loader builds it: in float32, nothing folded, on the CPU.

    A name of one's own is found by its weights in `weights_dir`, the note beside which names the architecture.
    Raises NotFound, FailedPrecondition or Unavailable, saying what to do.
    """
    # The bundled network has no other weights than those in the package.
    path = None if name == BUNDLED else weights.find(weights_dir, name)
    architecture = (weights.architecture(path) if path else "") or name
    return _loader(architecture)(architecture, path)


def untrained(architecture: str) -> Network:
    """Return likewise-tiny's network or one of torchvision's with weights drawn from torch's generator.

    Raises NotFound for another.
    """
    from likewise_server.backbones import tiny_loader, torchvision_models  # noqa: PLC0415

    return tiny_loader.untrained() if architecture == BUNDLED else torchvision_models.untrained(architecture)


def load(
    name: str, *, weights_dir: Path | None, device: torch.device, precision: str, decoding: Decoding = "scaled"
) -> Backbone:
    """Load a backbone onto a device in a precision (auto, fp32, bf16).

    Raises NotFound, FailedPrecondition or Unavailable, saying what to do.
    """
    return place(name, network(name, weights_dir), device, precision, decoding=decoding)


MOST_COPIES = 4  # of a network on a CPU, as far as nobody asks for more: each takes memory


def choose_devices(wanted: str) -> list[torch.device]:
    """Resolve "auto" (every GPU, else the CPU), or "cpu", "cuda", "cuda:N", several joined by commas.

    A device named twice gets two copies of each network; "cpu" alone gets one a core, up to MOST_COPIES, which
    share the cores: forwards that need not wait for one another's threads get more done. "cpu:0" is one copy, which
    has all of them.
    Raises InvalidArgument if a device is not there.
    """
    if wanted == "auto" and torch.cuda.device_count():
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if wanted in ("auto", "cpu"):
        return [torch.device("cpu")] * min(os.cpu_count() or 1, MOST_COPIES)
    return [_device(part.strip()) for part in wanted.split(",")]


def _device(wanted: str) -> torch.device:
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidArgument(f"--device {wanted}: use auto, cpu or cuda:N, or several joined by commas") from error
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
            raise InvalidArgument(f"--device {wanted}: torch sees {torch.cuda.device_count()} CUDA devices here")
    elif device.type != "cpu":
        raise InvalidArgument(f"--device {wanted}: use auto, cpu or cuda:N")
    return torch.device("cpu") if device.type == "cpu" else device
