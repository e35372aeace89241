"""Targets for a student, made of its teachers' features: centred, along their principal axes, partly whitened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

POWER: Final = 0.25
"""Targets are divided by their standard deviation to this power: 0 leaves them, 1 whitens them."""
LEAST: Final = 1e-6  # variance of an axis, as a share of the first one's, below which it is noise


@dataclass(frozen=True)
class Axes:
    """mean (d,), axes (d, t): a target is (feature - mean) @ axes."""

    mean: Tensor
    axes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the (n, t) targets of (n, d) features."""
        return (features - self.mean) @ self.axes


def as_they_are(dim: int) -> Axes:
    """Return the axes that leave features (n, dim) what they are: for a network that is to stay as it was."""
    return Axes(torch.zeros(dim), torch.eye(dim))


def fit(features: Tensor, widths: Sequence[int], dim: int) -> Axes:
    """Find the axes of (n, sum of widths) features of teachers side by side, `dim` of them at most.

    Every teacher gives its share of the columns, scaled so that all weigh the same. Centring and partial whitening
    make cosine between the targets tell classes apart better than between the features. Fewer features than
    axes, and axes along which nothing varies, give fewer.
    """
    share = max(1, dim // len(widths))
    means, blocks = [], []
    for part in torch.split(features, list(widths), 1):
        x = part.float()
        mean = x.mean(0)
        x = x - mean
        values, axes = torch.linalg.eigh((x.T @ x / len(x)).double())
        found = min(share, len(x) - 1, int((values > LEAST * values[-1]).sum()))
        values, axes = values[-found:].clamp_min(1e-12).float(), axes[:, -found:].float()
        block = axes / values ** (POWER / 2)
        blocks.append(block / (x @ block).norm(dim=1).mean())
        means.append(mean)
    return Axes(torch.cat(means), torch.block_diag(*blocks))  # type: ignore[no-untyped-call]  # torch has no type here
