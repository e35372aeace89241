"""How much is measured, and where what a run leaves for the next one lies."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

CENTRES_KIND, SHARED_KIND = "clusters", "shared"


@dataclass(frozen=True, slots=True)
class Plan:
    """One size of data and how it is searched. Workers get it as JSON."""

    scratch: str
    n: int
    dim: int
    kind: str = CENTRES_KIND
    seed: int = 7
    queries: int = 1000  # half of them tune, the other half is timed
    k: int = 10
    batch: int = 64
    recall: float = 0.99
    rounds: int = 3
    seconds: float = 4.0  # of one turn
    patience: float = 7200.0  # with a build, and with a worker's answer
    threads: int = os.cpu_count() or 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the plan that `json` wrote."""
        return cls(**json.loads(text))

    def json(self) -> str:
        """Return the plan as a worker's argument."""
        return json.dumps(asdict(self))

    def at(self, n: int) -> Plan:
        """Return the same plan for another number of rows."""
        return replace(self, n=n)

    @property
    def folder(self) -> Path:
        """Where the data of this kind, size and seed are, and what was built of them."""
        return Path(self.scratch) / f"{self.kind}-{self.n}x{self.dim}-seed{self.seed}"

    @property
    def vector_bytes(self) -> int:
        """The size of all rows in float32."""
        return self.n * self.dim * 4
