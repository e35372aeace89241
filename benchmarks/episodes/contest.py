"""All systems on the episodes of one set's vectors: accuracies, calibration, and what is taken for unknown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from episodes import unknowns
from episodes.manifest import ALL_WAY, FEW_WAY, UNEVEN, UNKNOWN, Part
from episodes.pictures import PictureSet, Vectors
from episodes.systems import AUTO, EASYFSL_NCM, NCM, SYSTEMS, trained
from episodes.task import Task, tasks

SHOTS = {FEW_WAY.name: (1, 5), ALL_WAY.name: (1, 5, 10, 20), UNEVEN.name: (5,), UNKNOWN.name: (1, 5, 10)}
ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Counts:
    """How many episodes: of five classes, with the slow systems, of all classes, uneven, with unknown classes."""

    episodes: int = 600
    slow: int = 30
    seeds: int = 10
    uneven: int = 100
    unknown: int = 20

    def of(self, part: Part) -> int:
        """Return the episodes of a part."""
        counts = {FEW_WAY: self.episodes, ALL_WAY: self.seeds, UNEVEN: self.uneven, UNKNOWN: self.unknown}
        return counts[part]


@dataclass(slots=True)
class Cell:
    """One part of one set at one number of examples: a value of each system by episode."""

    backbone: str
    set: str
    part: str
    shots: int
    classes: int
    values: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    ece: float | None = None
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """What `auto` became, and how often."""
    differing: int = 0
    """Queries that likewise's ncm and easyfsl's SimpleShot answer differently."""
    queries: int = 0


def run(
    backbone: str, pictures: PictureSet, vectors: Vectors, far: Vectors, parts: Sequence[Part], counts: Counts
) -> list[Cell]:
    """Return the cells of a set."""
    cells = []
    for part in parts:
        for shots in SHOTS[part.name]:
            drawn = tasks(pictures, vectors, part, shots, counts.of(part))
            cell = None
            scored: list[tuple[Vectors, Vectors]] = []
            for task in drawn:
                cell = cell or Cell(backbone, pictures.name, part.name, shots, task.n_classes)
                if part == UNKNOWN:
                    _unknown(cell, task, far)
                else:
                    scored.append(_classified(cell, task, counts.slow))
            if cell is not None:
                if scored:
                    cell.ece = _ece(*(np.concatenate(column) for column in zip(*scored, strict=True)))
                cells.append(cell)
    return cells


def _classified(cell: Cell, task: Task, slow: int) -> tuple[Vectors, Vectors]:
    head = trained(task, task.mean)
    shares, _ = head.scores(task.Q)
    right = shares.argmax(axis=1) == task.truth
    cell.values[AUTO][task.number] = float(right.mean())
    cell.kinds[head.kind + (" centred" if head.mean is not None else "")] += 1
    answers = {}
    for system in SYSTEMS:
        if system.slow and task.number >= slow:
            continue
        answer = system.answer(task)
        if answer is not None:
            answers[system.name] = answer
            cell.values[system.name][task.number] = float((answer == task.truth).mean())
    cell.differing += int((answers[NCM] != answers[EASYFSL_NCM]).sum())
    cell.queries += len(task.truth)
    return shares.max(axis=1), right.astype(float)


def _unknown(cell: Cell, task: Task, far: Vectors) -> None:
    asked = np.concatenate([task.Q, task.U, far])
    n, near = len(task.Q), len(task.Q) + len(task.U)
    scored = [*unknowns.ours(task, asked), *unknowns.theirs(task, asked)]
    for name, scores in scored:
        cell.values[f"{name}: near"][task.number] = unknowns.auroc(scores[:n], scores[n:near])
        cell.values[f"{name}: far"][task.number] = unknowns.auroc(scores[:n], scores[near:])
    head = trained(task, task.mean)
    novelty = head.scores(asked)[1] > head.threshold
    cell.values["known rejected"][task.number] = float(novelty[:n].mean())
    cell.values["near accepted"][task.number] = float(1 - novelty[n:near].mean())
    cell.values["far accepted"][task.number] = float(1 - novelty[near:].mean())


def _ece(score: Vectors, right: Vectors) -> float:
    """Return the expected calibration error over all episodes' queries, 15 bins."""
    number = np.minimum((score * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    return float(np.abs(np.bincount(number, score - right, ECE_BINS)).sum() / len(score))
