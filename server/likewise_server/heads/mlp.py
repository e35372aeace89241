"""A multilayer perceptron: one hidden layer, trained by AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101).

With dropout (Srivastava et al., 2014), a learning rate that falls by a cosine or on a plateau, and early stopping: a
stratified fifth of the examples is held out, and the weights of the epoch with the least loss on it are kept. Without
an example to spare (one a class) every epoch is run on everything. Trained in torch, kept as NumPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from likewise_server.heads.base import Fit, HeldOut, Kind
from likewise_server.heads.validate import fold_numbers, k_fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from numpy.typing import NDArray

    from likewise_server.heads.base import Arrays, Matrix, Problem, Rows, Vector
    from likewise_server.heads.options import HeadOptions

FOLDS = 3
VALIDATION_FOLDS = 5
BATCH = 256
# Of small products: more threads would wait for each other, and for whatever else runs.
THREADS = 1
# A loss has to fall by this much to count, or a faultless head would train for ever.
_LOWER = 1e-4


@dataclass(frozen=True, eq=False)
class Perceptron:
    """logits = max(Z·W1 + b1, 0)·W2 + b2, with W1 (d, h), b1 (h,), W2 (h, C) and b2 (C,)."""

    W1: Matrix
    b1: Vector
    W2: Matrix
    b2: Vector

    def logits(self, Z: Matrix, similarities: NDArray[np.floating]) -> Matrix:  # noqa: ARG002
        """See Scorer."""
        return np.asarray(np.maximum(Z @ self.W1 + self.b1, 0.0) @ self.W2 + self.b2, dtype=np.float64)

    def arrays(self) -> Arrays:
        """See Scorer."""
        return {"W1": self.W1, "b1": self.b1, "W2": self.W2, "b2": self.b2}

    def member_logits(self, Z: Matrix) -> Iterable[Matrix]:  # noqa: ARG002
        """See Scorer."""
        return ()

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Perceptron:
        """Build again from `arrays()`."""
        return cls(arrays["W1"], arrays["b1"], arrays["W2"], arrays["b2"])


class _Network:
    """The perceptron while it is trained. Every draw comes from one seeded generator of its own."""

    def __init__(self, d: int, n_classes: int, options: HeadOptions) -> None:
        import torch  # noqa: PLC0415

        self._torch, self._dropout = torch, options.dropout
        self.generator = torch.Generator().manual_seed(options.seed)
        # Rows are of length 1, so normal weights of variance 2 make hidden units of mean square 1 (He et al., 2015).
        W1 = torch.randn((d, options.hidden), generator=self.generator) * 2**0.5
        sizes = (options.hidden,), (options.hidden, n_classes), (n_classes,)
        self.parameters = [W1, *(torch.zeros(size) for size in sizes)]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def __call__(self, Z: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        W1, b1, W2, b2 = self.parameters
        units = (Z @ W1 + b1).relu()
        if training and self._dropout:
            kept = self._torch.rand(units.shape, generator=self.generator) >= self._dropout
            units = units * kept / (1 - self._dropout)
        return units @ W2 + b2

    def perceptron(self) -> Perceptron:
        return Perceptron(*(parameter.detach().numpy().astype(np.float64) for parameter in self.parameters))


def fit(problem: Problem) -> Fit:
    """Train until the held-out loss no longer falls, or for all epochs where nothing can be held out."""
    import torch  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    fold = fold_numbers(problem.y, VALIDATION_FOLDS, problem.options.seed)
    held = np.flatnonzero(fold == 0) if problem.n_classes > 1 else np.empty(0, dtype=np.intp)
    inside = np.setdiff1d(np.arange(len(fold)), held)
    # Both are a matter of this thread only: others, which may be running networks, keep their gradients off and
    # their cores.
    with threadpool_limits(THREADS, user_api="openmp"), torch.inference_mode(mode=False), torch.enable_grad():
        return Fit(_train(problem, inside, held))


def _train(problem: Problem, inside: Rows, outside: Rows) -> Perceptron:
    """Train on the rows inside, and stop by those outside, if any."""
    import torch  # noqa: PLC0415

    options = problem.options
    network = _Network(problem.Z.shape[1], problem.n_classes, options)
    W1, b1, W2, b2 = network.parameters
    groups: list[dict[str, Any]] = [{"params": [W1, W2]}, {"params": [b1, b2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=max(1, options.patience // 4))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs)
    seen = _tensors(problem, inside)
    held = _tensors(problem, outside if len(outside) else inside)
    best, least, found = network.perceptron(), np.inf, 0
    for epoch in range(options.epochs):
        order = torch.randperm(len(inside), generator=network.generator)
        for batch in torch.split(order, BATCH):
            Z, y, weights = (each[batch] for each in seen)
            optimizer.zero_grad()
            _loss(network(Z, training=True), y, weights).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            loss = float(_loss(network(held[0]), held[1], held[2]))
        if options.schedule == "plateau":
            plateau.step(loss)
        else:
            cosine.step()
        if not len(outside) or loss < least - _LOWER:
            best, least, found = network.perceptron(), loss, epoch
        elif epoch - found >= options.patience:
            break
    return best


def _tensors(problem: Problem, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch  # noqa: PLC0415

    arrays = problem.Z[rows].astype(np.float32), problem.y[rows], problem.weights[rows].astype(np.float32)
    Z, y, weights = (torch.from_numpy(array) for array in arrays)
    return Z, y, weights


def _loss(logits: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import cross_entropy  # noqa: PLC0415

    return (weights * cross_entropy(logits, y, reduction="none")).mean()


def held_out(problem: Problem) -> HeldOut:
    """Out-of-fold logits, every fold with an early stop of its own."""
    return k_fold(KIND, problem, FOLDS)


KIND = Kind(
    "mlp",
    (
        "center",
        "class_weight",
        "hidden",
        "dropout",
        "weight_decay",
        "epochs",
        "learning_rate",
        "schedule",
        "patience",
    ),
    fit,
    held_out,
    Perceptron.restore,
    one_shot_temperature=1.0,
)
