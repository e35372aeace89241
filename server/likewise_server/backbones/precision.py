"""Which precision a network runs in: bf16 only where the device computes it natively and the vectors stay the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from PIL import Image

from likewise_server.backbones.backbone import Backbone, twin
from likewise_server.backbones.base import Network
from likewise_server.backbones.replica import Precision
from likewise_server.errors import FailedPrecondition, InvalidArgument
from likewise_server.images import Decoding, Preprocessing, preprocess

log = structlog.get_logger()

LEAST_COSINE = 0.999  # between bf16 and fp32 vectors of the same pictures


def place(name: str, network: Network, device: torch.device, wanted: str, *, decoding: Decoding = "scaled") -> Backbone:
    """Return the backbone on its device in the precision wanted: "fp32", "bf16", or "auto".

    "auto" takes bf16 if the device has it and every probe picture's vector keeps a cosine of LEAST_COSINE
    to its fp32 vector; depthwise networks often do not. Raises InvalidArgument for another word.
    """
    if wanted in ("fp32", "bf16"):
        return Backbone(name, network, device, "fp32" if wanted == "fp32" else "bf16", decoding=decoding)
    if wanted != "auto":
        raise InvalidArgument(f"--precision {wanted}: use auto, fp32 or bf16")
    if not native_bf16(device):
        return Backbone(name, network, device, "fp32", decoding=decoding)
    exact = Backbone(name, twin(network), device, "fp32", decoding=decoding)
    rounded = Backbone(name, network, device, "bf16", decoding=decoding)
    pictures = probes(network.preprocessing)
    cosine = least_cosine(exact.forward(pictures, exact.ref()), rounded.forward(pictures, rounded.ref()))
    chosen: Precision = "bf16" if cosine >= LEAST_COSINE else "fp32"
    log.info("precision", backbone=name, least_cosine=round(cosine, 5), chosen=chosen)
    return rounded if chosen == "bf16" else exact


def native_bf16(device: torch.device) -> bool:
    """Return whether the device computes bf16 itself, instead of imitating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Older torch cannot tell; fp32 is right everywhere.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def probes(how: Preprocessing) -> NDArray[np.uint8]:
    """Return crops of the two photographs that come with scikit-learn, (8, crop, crop, 3)."""
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that would take two seconds
    if spec is None or spec.origin is None:
        raise FailedPrecondition("scikit-learn is missing: pip install 'likewise[server]'")
    crops: list[NDArray[np.uint8]] = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(Path(spec.origin).parent / "datasets/images" / name) as file:
            image = file.convert("RGB")
        width, height = image.size
        boxes = [(0, 0, width, height), (0, 0, width // 2, height // 2)]
        boxes += [(width // 2, height // 3, width, height), (width // 3, height // 3, width // 2, height // 2)]
        crops += [preprocess(image.crop(box), how) for box in boxes]
    return np.stack(crops)


def least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the least cosine between corresponding rows of two (n, dim) matrices, -1 if one holds no numbers."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
    return float(np.min(np.nan_to_num(cosines, nan=-1.0, posinf=-1.0)))
