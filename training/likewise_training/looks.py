"""Pictures into batches of augmented looks: which at which step, and how each is changed, follow from the seed.

So a resumed run sees what an unbroken one would have, with any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from likewise_server.images import decode, guard
from likewise_training.pictures import LIMITS, Picture

MOST_WORKERS = 8


class Batch(NamedTuple):
    """looks uint8 (n, 3, side, side); shares (n, C) float32 of the classes, zeros where a picture has no label."""

    looks: Tensor
    shares: Tensor


def batch_indexes(count: int, step: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Return the places, of `count`, of step `step`: a slice of that epoch's own permutation."""
    batch = min(batch, count)
    epoch, place = divmod(step, count // batch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[place * batch : (place + 1) * batch]


def augmentation(side: int, strength: Literal["strong", "light"], *, flip: bool) -> Any:
    """Return the transform of a Pillow image into a uint8 (3, side, side) tensor; it draws from torch's generator.

    strong: crops of a fifth of the area on, RandAugment (Cubuk et al., 2020), colours, grey now and then, and turns by
    it; light: crops of half the area on, a little colour.
    """
    from torchvision.transforms import v2  # noqa: PLC0415  # slow to import

    strong = strength == "strong"
    parts: list[Any] = [v2.RandomResizedCrop(side, scale=(0.2 if strong else 0.5, 1.0), antialias=True)]
    if flip:
        parts.append(v2.RandomHorizontalFlip())
    if strong:
        parts += [v2.RandAugment(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.1)]
    else:
        parts.append(v2.ColorJitter(0.2, 0.2, 0.2))
    return v2.Compose([*parts, v2.PILToTensor()])


class Looks(Dataset[tuple[Tensor, int]]):
    """A key (place, seed) to the look of that picture that the seed gives, and its class, -1 for none."""

    def __init__(self, pictures: Sequence[Picture], labels: NDArray[np.int64], transform: Any) -> None:
        self._pictures, self._labels, self._transform = pictures, labels, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """Decode and change one picture. Raises LikewiseError, OSError if it has become unreadable."""
        place, seed = key
        image = decode(self._pictures[place].read(), LIMITS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._transform(image), int(self._labels[place])


class _Order(Sampler[list[tuple[int, int]]]):
    """The keys of every step from `start` on, without end."""

    def __init__(self, count: int, batch: int, seed: int, start: int) -> None:
        self._count, self._batch, self._seed, self._start = count, batch, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self._start
        while True:
            places = batch_indexes(self._count, step, self._batch, self._seed).tolist()
            seeds = np.random.default_rng((self._seed, step, 2)).integers(0, 2**62, len(places)).tolist()
            yield list(zip(places, seeds, strict=True))
            step += 1


def batches(
    looks: Looks, count: int, classes: int, *, start: int, batch: int, mixup: float, seed: int, workers: int | None
) -> Iterator[Batch]:
    """Yield the batches of step `start` on, without end, made ahead by `workers` processes (0: by this one)."""
    if workers is None:
        workers = min(MOST_WORKERS, (os.cpu_count() or 1) - 1)
    loader = DataLoader(
        looks,
        batch_sampler=_Order(count, batch, seed, start),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_settle,
    )
    for step, (views, labels) in enumerate(loader, start):
        shares = functional.one_hot(labels.clamp_min(0), max(1, classes)).float() * (labels >= 0)[:, None]
        yield mixed(Batch(views, shares), mixup, (seed, step, 3)) if mixup else Batch(views, shares)


def mixed(batch: Batch, alpha: float, seed: tuple[int, ...]) -> Batch:
    """Blend each look with another and their shares alike, by a share from Beta(alpha, alpha).

    Zhang et al., "mixup", 2018; a teacher that is shown the blend makes its target (Beyer et al., 2022).
    """
    rng = np.random.default_rng(seed)
    share, order = float(rng.beta(alpha, alpha)), torch.from_numpy(rng.permutation(len(batch.looks)))
    looks = torch.lerp(batch.looks[order].float(), batch.looks.float(), share).round().to(torch.uint8)
    return Batch(looks, torch.lerp(batch.shares[order], batch.shares, share))


def _settle(_worker: int) -> None:
    guard(LIMITS)
