"""Fold batch norms into the convolutions before them: the same function of the input in half the memory traffic.

A folded convolution's own output is no longer there to be taken as a layer; that of its batch norm is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FoldedConv(nn.Module):
    """Stands where the convolution stood and gives what its batch norm gave."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        out: Tensor = self.convolution(x)
        return out


def fold(module: nn.Module) -> None:
    """Fold every pair that torchvision's and timm's blocks run one after the other, in place, in eval mode."""
    for child in module.children():
        fold(child)
    for conv_name, norm_name in list(_pairs(module)):
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
            setattr(module, conv_name, FoldedConv(fuse_conv_bn_eval(conv, norm)))
            setattr(module, norm_name, nn.Identity())


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of children that run as convolution, then norm.

    In a Sequential those are neighbours; elsewhere only the blocks whose code says so: ResNet's
    conv1 → bn1 and the like, and Inception's conv → bn.
    """
    names = [name for name, _ in module.named_children()]
    if isinstance(module, nn.Sequential):
        yield from pairwise(names)
    elif type(module).__name__ in ("ResNet", "BasicBlock", "Bottleneck", "BasicConv2d"):
        for name in names:
            match = re.fullmatch(r"conv(\d*)", name)
            if match and f"bn{match[1]}" in names:
                yield name, f"bn{match[1]}"
