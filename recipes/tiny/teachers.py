"""The teachers' pooled features, and the targets made of them."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from likewise_training.targets import fit

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
NAMES: Final = ("mobilenet_v2", "mobileone_s0")
WIDTHS: Final = (1280, 1024)


def load_teacher(name: str, weights: Path) -> nn.Module:
    """Return the feature extractor `name`, (n, 3, h, w) to (n, width, h / 32, w / 32), frozen.

    `weights` holds `<name>.pth` state dicts of torchvision's mobilenet_v2 and timm's mobileone_s0.
    """
    state = torch.load(weights / f"{name}.pth", weights_only=True)
    if name == "mobilenet_v2":
        network = torchvision.models.mobilenet_v2()
        network.classifier = nn.Identity()
        network.load_state_dict(state)
        features: nn.Module = network.features
    else:
        one: Any = reparameterize_model(timm.create_model(name).eval())
        one.load_state_dict(state)
        features = nn.Sequential(one.stem, one.stages, one.final_conv)
    return features.eval().requires_grad_(requires_grad=False)


def standardise(views: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Turn uint8 (n, h, w, 3) into standardised float32 (n, 3, h, w), channels last in memory."""
    pixels = views.permute(0, 3, 1, 2).float()
    scale = 255 * torch.tensor(std).view(3, 1, 1)
    return (pixels - 255 * torch.tensor(mean).view(3, 1, 1)) / scale


class Teachers:
    """Both teachers in bfloat16, compiled: uint8 views to their pooled, L2-normalised features."""

    def __init__(self, weights: Path, side: int = 160, batch: int = 32, *, compiled: bool = True) -> None:
        self.side, self.batch = side, batch
        self._networks: list[Any] = []
        for name in NAMES:
            network = load_teacher(name, weights).bfloat16().to(memory_format=torch.channels_last)
            self._networks.append(torch.compile(network, options={"freezing": True}) if compiled else network)

    @torch.inference_mode()
    def __call__(self, views: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return float16 (n, 1280 + 1024) for uint8 (n, h, w, 3), enlarged to `side` first."""
        rows = []
        for start in range(0, len(views), self.batch):
            part = views[start : start + self.batch]
            padded = np.concatenate([part, np.zeros((self.batch - len(part), *part.shape[1:]), np.uint8)])
            pixels = nn.functional.interpolate(
                standardise(torch.from_numpy(padded)), (self.side, self.side), mode="bilinear"
            )
            pixels = pixels.bfloat16().contiguous(memory_format=torch.channels_last)
            pooled = [network(pixels).float().mean((2, 3)) for network in self._networks]
            rows.append(torch.cat([nn.functional.normalize(one, dim=1) for one in pooled], 1)[: len(part)])
        return torch.cat(rows).half().numpy()


def targets(features: NDArray[np.float16], dim: int) -> Tensor:
    """Return float32 (n, dim) targets, dim / 2 columns a teacher; of too few views to fill them the last are zeros."""
    x = torch.from_numpy(features).float()
    made = fit(x, WIDTHS, dim)(x)
    return nn.functional.pad(made, (0, dim - made.shape[1]))
