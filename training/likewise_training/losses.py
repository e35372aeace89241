"""What a student is asked for: its teachers' features, who is like whom, and its classes."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LIKENESS_TEMPERATURE: Final = 0.1
SCALE: Final = 16.0  # of the cosines that a classifier starts with


def feature_loss(student: Tensor, target: Tensor, kind: Literal["cosine", "mse"] = "cosine") -> Tensor:
    """Return how far (n, d) features are from their targets: 1 - cosine, or the mean square, averaged.

    The square is FitNets' (Romero et al., 2015), of vectors of length 1, and times d: of the size of 1 - cosine.
    """
    s, t = functional.normalize(student, dim=1), functional.normalize(target, dim=1)
    if kind == "mse":
        return functional.mse_loss(s, t) * s.shape[1]
    return 1 - (s * t).sum(1).mean()


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence of who is like whom within the batch; (n, d) and (n, e), whose d and e may differ.

    The similarity distillation of Fang et al., "SEED", 2021, with the batch in the place of its queue.
    """
    s, t = functional.normalize(student, dim=1), functional.normalize(teacher, dim=1)
    alone = -1e4 * torch.eye(len(s), device=s.device)
    like_s = ((s @ s.T) / LIKENESS_TEMPERATURE + alone).log_softmax(1)
    like_t = ((t @ t.T) / LIKENESS_TEMPERATURE + alone).log_softmax(1)
    return functional.kl_div(like_s, like_t, log_target=True, reduction="batchmean")


class CosineClassifier(nn.Module):
    """Logits are scaled cosines to one direction a class (Gidaris and Komodakis, 2018): (n, d) to (n, C).

    Features that it separates are those that nearest means by cosine separate.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, dim) / dim**0.5)
        self.log_scale = nn.Parameter(torch.tensor(SCALE).log())

    def imprint(self, features: Tensor, labels: Tensor) -> None:
        """Start from the mean of each class that has (n, d) `features` (Qi et al., "Imprinted weights", 2018)."""
        unit = functional.normalize(features, dim=1)
        with torch.no_grad():
            for label in set(labels.tolist()):
                self.directions[label] = unit[labels == label].mean(0).to(self.directions.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        cosines = functional.normalize(x, dim=1) @ functional.normalize(self.directions, dim=1).T
        return self.log_scale.exp() * cosines


def label_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the cross-entropy of (n, C) logits to (n, C) shares of the classes, which mix-up makes."""
    return functional.cross_entropy(logits, shares)
