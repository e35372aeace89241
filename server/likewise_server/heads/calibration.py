"""Calibration: one temperature, fitted on held-out logits (Guo et al., 2017, arXiv:1706.04599).

One number can be fitted from a handful of pictures and never changes which class wins. The targets are smoothed
as Platt's (1999) are, with a quarter of his pseudo-count: with n rows nothing is believed beyond (n+¼)/(n+½), so
that a few rows told apart without a mistake do not become certainties. The whole of it made scores too low, for
held-out rows were scored by heads of fewer examples already (docs/heads.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from likewise_server.heads.base import HeldOut, Matrix, Rows, Vector

_LOWEST, _HIGHEST = 1e-4, 1e2
_PSEUDO_COUNT = 0.25


def probabilities(logits: Matrix, temperature: float, log_prior: Vector) -> Matrix:
    """Return softmax(logits / temperature + log prior), (m, C), rows summing to 1."""
    scaled = logits / temperature + log_prior
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def fit_temperature(held: HeldOut, y: Rows) -> float:
    """Return the temperature of least log loss for the held-out logits (r, C) and their classes y (r,)."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415

    n, C = held.logits.shape
    sure = (n + _PSEUDO_COUNT) / (n + 2 * _PSEUDO_COUNT)
    logits = held.logits - held.logits.max(axis=1, keepdims=True)
    own = logits[np.arange(n), y]
    # The expected logit under the smoothed target: `sure` on the own class, the rest spread over the others.
    target = sure * own + (1 - sure) * (logits.sum(axis=1) - own) / max(C - 1, 1)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(np.log(np.exp(logits * scale).sum(axis=1)) - target * scale))

    found = minimize_scalar(loss, bounds=(np.log(_LOWEST), np.log(_HIGHEST)), method="bounded")
    return float(np.exp(found.x))
