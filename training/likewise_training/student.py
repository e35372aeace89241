"""The network that is trained, with what is only there to train it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from likewise_server.backbones.base import BackboneRef, Network
from likewise_server.backbones.replica import Feature
from likewise_server.errors import InvalidArgument
from likewise_server.images import Preprocessing
from likewise_training.losses import CosineClassifier
from likewise_training.pictures import Picture, pixels

WRAPPER = 0.9  # a module with this share of all parameters is no block but what the blocks are in


class Student(nn.Module):
    """A network's default feature, computed as it will be served, and a projection and a classifier on top."""

    def __init__(self, network: Network, *, target_dim: int = 0, classes: int = 0, freeze_norms: bool = False) -> None:
        super().__init__()
        self.network = network
        self.feature = Feature(network, BackboneRef(""), torch.float32)
        self.projection: nn.Module = nn.Identity()
        self.classifier: CosineClassifier | None = None
        self._freeze_norms = freeze_norms
        self._still: list[nn.Module] = []
        self.dim = self._dim()
        if target_dim and target_dim != self.dim:
            self.projection = nn.Linear(self.dim, target_dim)
        if classes:
            self.classifier = CosineClassifier(self.dim, classes)

    @property
    def preprocessing(self) -> Preprocessing:
        """The network's own."""
        return self.network.preprocessing

    def keep_still(self, blocks: int) -> None:
        """Freeze all of the network but its last `blocks` blocks. Raises InvalidArgument if it has fewer."""
        found = list(_blocks(self.network))
        if blocks > len(found):
            raise InvalidArgument(f"blocks={blocks}: this network has {len(found)}; use fewer")
        self.network.module.requires_grad_(requires_grad=False)
        for block in found[-blocks:]:
            block.requires_grad_(requires_grad=True)
        trained = {id(module) for block in found[-blocks:] for module in block.modules()}
        self._still = [module for module in self.network.module.modules() if id(module) not in trained]

    def train(self, mode: bool = True) -> Student:
        """Go into training mode, except for what is frozen."""
        super().train(mode)
        for module in self._still:
            module.training = False
        for module in self.network.module.modules():
            if self._freeze_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  # of any axes
                module.eval()
        return self

    def features(self, looks: Tensor) -> Tensor:
        """Return (n, dim) float32 features of uint8 (n, 3, side, side) looks, resized to the network's crop."""
        device = next(self.feature.buffers()).device
        found: Tensor = self.feature(resized(looks, self.preprocessing.crop).permute(0, 2, 3, 1).to(device))
        return found

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Return float32 (n, dim) features of length 1 of the pictures as they would be served, in evaluation mode."""
        was = self.training
        self.eval()
        device = next(self.feature.buffers()).device
        rows = [self.feature(torch.from_numpy(part).to(device)) for part in pixels(pictures, self.preprocessing)]
        self.train(was)
        return functional.normalize(torch.cat(rows).float(), dim=1).cpu().numpy()

    @torch.inference_mode()
    def _dim(self) -> int:
        was = self.training
        self.eval()
        crop = self.preprocessing.crop
        dim = self.feature(torch.zeros(1, crop, crop, 3, dtype=torch.uint8)).shape[1]
        super().train(was)
        return int(dim)


def resized(looks: Tensor, side: int) -> Tensor:
    """Return uint8 (n, 3, side, side) of square looks."""
    if looks.shape[-1] == side:
        return looks
    return functional.interpolate(looks, (side, side), mode="bilinear", antialias=True)


def _blocks(network: Network) -> Iterator[nn.Module]:
    """Yield the units that hold parameters, first to last, containers taken apart, without the classifier."""
    total = sum(p.numel() for p in network.module.parameters())

    def walk(module: nn.Module, name: str) -> Iterator[nn.Module]:
        own = sum(p.numel() for p in module.parameters())
        if not own or (network.classifier_prefix and name == network.classifier_prefix):
            return
        if name and type(module) not in (nn.Sequential, nn.ModuleList) and own < WRAPPER * total:
            yield module
            return
        if not any(True for _ in module.children()):
            yield module
        for child, inner in module.named_children():
            yield from walk(inner, f"{name}.{child}" if name else child)

    yield from walk(network.module, "")
