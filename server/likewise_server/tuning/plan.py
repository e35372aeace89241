"""What is to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from likewise_server.images import ImageLimits
from likewise_server.tuning.pictures import Pictures

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CELLS = 50  # parts that a backbone's seconds are cut into, about
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `seconds`: of measuring for each backbone, about; loading and compiling come on top."""

    backbones: Sequence[str]
    pictures: Pictures
    limits: ImageLimits
    device: str = "auto"
    precision: str = "auto"
    weights_dir: Path | None = None
    compile_into: Path | None = None  # None: compiled forwards are left out
    seconds: float = 30.0
    batches: Sequence[int] = BATCHES

    @property
    def cell_s(self) -> float:
        """Seconds for one cell of a table."""
        return self.seconds / CELLS
