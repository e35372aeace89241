"""Backbone names and who loads them. A family is one file beside this one and one line here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from likewise_server.backbones.backbone import Backbone
from likewise_server.backbones.base import Network
from likewise_server.backbones.precision import place
from likewise_server.errors import InvalidArgument
from likewise_server.images import Decoding

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


def load(
    name: str, *, weights_dir: Path | None, device: torch.device, precision: str, decoding: Decoding = "scaled"
) -> Backbone:
    """Load a backbone onto a device in a precision (auto, fp32, bf16).

    Raises NotFound, FailedPrecondition or Unavailable, saying what to do.
    """
    loader = next(loader for prefix, loader in LOADERS.items() if name.startswith(prefix))
    return place(name, loader(name, weights_dir), device, precision, decoding=decoding)


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
