"""What a student is asked in each step, and by whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from likewise_server.backbones import registry
from likewise_training import checkpoints, losses, targets
from likewise_training.looks import Batch
from likewise_training.pictures import Picture, pixels
from likewise_training.settings import Training
from likewise_training.student import Student, resized
from likewise_training.targets import Axes

SAMPLE: Final = 4096  # pictures that targets, and a classifier's start, are made from


class Teachers:
    """Served backbones, frozen: looks, or pictures, to their features of length 1 side by side, (n, sum of widths)."""

    def __init__(self, names: Sequence[str], weights_dir: Path, device: torch.device, precision: str) -> None:
        self._backbones = [
            registry.load(name, weights_dir=weights_dir, device=device, precision=precision) for name in names
        ]
        self.widths = [each.learn_space(each.ref()).dim for each in self._backbones]
        self.side = max(each.preprocessing.crop for each in self._backbones)

    def look(self, looks: Tensor) -> Tensor:
        """Return float32 features of uint8 (n, 3, side, side) looks, on the CPU."""
        parts = []
        for each in self._backbones:
            squares = resized(looks, each.preprocessing.crop).permute(0, 2, 3, 1).contiguous().numpy()
            parts.append(functional.normalize(torch.from_numpy(each.forward(squares, each.ref())), dim=1))
        return torch.cat(parts, 1).clone()  # what was made in inference mode takes no part in training

    def embed(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Return float32 features of pictures as they are served."""
        parts = []
        for each in self._backbones:
            rows = np.concatenate([each.forward(part, each.ref()) for part in pixels(pictures, each.preprocessing)])
            parts.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
        return np.concatenate(parts, 1)


def axes_for(
    student_dim: int, teachers: Teachers, kept: Sequence[Picture], settings: Training, decided_by: Mapping[str, str]
) -> Axes:
    """Return what makes targets of the teachers' features of the pictures trained on, made once in a run's folder.

    Kept, since axes of close variance may turn with the number of threads.
    """
    path, decisive = settings.run / "targets.pt", settings.decisive() | dict(decided_by)
    made = checkpoints.load(path, decisive)
    if made is None:
        features = torch.from_numpy(teachers.embed(sample(kept, settings.seed)))
        found = targets.fit(features, teachers.widths, student_dim)
        made = {"mean": found.mean, "axes": found.axes}
        checkpoints.save(path, made, decisive)
    return Axes(made["mean"], made["axes"])


def sample(kept: Sequence[Picture], seed: int) -> list[Picture]:
    """Draw up to SAMPLE of the pictures, always the same."""
    return [kept[i] for i in np.random.default_rng((seed, 4)).permutation(len(kept))[:SAMPLE].tolist()]


class Lesson:
    """The losses of a step, each times its weight."""

    def __init__(self, settings: Training, teachers: Teachers | None, axes: Axes | None, *, half: bool) -> None:
        self._settings, self._teachers, self._axes, self._half = settings, teachers, axes, half

    def __call__(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name; their sum is what is made less."""
        settings, device = self._settings, next(student.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._half):
            features = student.features(batch.looks)
        parts: dict[str, Tensor] = {}
        if self._teachers is not None and self._axes is not None:
            target = self._axes(self._teachers.look(batch.looks)).to(device)
            if settings.feature:
                said = student.projection(features)
                parts["feature"] = settings.feature * losses.feature_loss(said, target, settings.feature_loss)
            if settings.relation:
                parts["relation"] = settings.relation * losses.relation_loss(features, target)
        if student.classifier is not None:
            logits = student.classifier(features)
            parts["label"] = settings.label * losses.label_loss(logits, batch.shares.to(device))
        return parts
