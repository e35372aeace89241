"""Backbone names and who loads them. A family is one file beside this one and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import Network
from likewise_server.backbones.precision import place
from likewise_server.errors import InvalidArgument

Loader = Callable[[str, Path | None], Network]


def _tiny(_name: str, _weights_dir: Path | None) -> Network:
    from likewise_server.backbones import tiny_loader  # noqa: PLC0415

    return tiny_loader.load_network()


def _timm(name: str, weights_dir: Path | None) -> Network:
    from likewise_server.backbones import timm_models  # noqa: PLC0415

    return timm_models.load(name, weights_dir)


def _torchvision(name: str, weights_dir: Path | None) -> Network:
    from likewise_server.backbones import torchvision_models  # noqa: PLC0415

    return torchvision_models.load(name, weights_dir)


# By prefix of the name; the first that fits loads it.
LOADERS: dict[str, Loader] = {"likewise-tiny": _tiny, "timm/": _timm, "": _torchvision}


def known_names() -> list[str]:
    """Return the names that can be served, without the hundreds of timm's."""
    from likewise_server.backbones import torchvision_models  # noqa: PLC0415

    return ["likewise-tiny", *torchvision_models.names()]


def load(name: str, *, weights_dir: Path | None, device: torch.device, precision: str) -> Backbone:
    """Load a backbone onto a device in a precision (auto, fp32, bf16).

    Raises NotFound, FailedPrecondition or Unavailable, saying what to do.
    """
    loader = next(loader for prefix, loader in LOADERS.items() if name.startswith(prefix))
    return place(name, loader(name, weights_dir), device, precision)


def choose_device(wanted: str) -> torch.device:
    """Resolve "auto", "cpu", "cuda" or "cuda:N". Raises InvalidArgument if it is not there."""
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidArgument(f"--device {wanted}: use auto, cpu or cuda:N") from error
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
            raise InvalidArgument(f"--device {wanted}: torch sees {torch.cuda.device_count()} CUDA devices here")
    elif device.type != "cpu":
        raise InvalidArgument(f"--device {wanted}: use auto, cpu or cuda:N")
    return device
