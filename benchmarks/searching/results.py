"""What a run gave at one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from common.figures import Ratio
from searching.plan import Plan
from searching.stages import Facts, Readings, median


@dataclass(slots=True)
class Results:
    """Facts of the builds, and the readings of each part that was measured."""

    plan: Plan
    faiss: dict[str, Facts] = field(default_factory=dict)  # by factory string
    peers: dict[str, Facts] = field(default_factory=dict)
    likewise: Facts = field(default_factory=dict)
    contest: Readings = field(default_factory=dict)
    recalls: dict[str, Facts] = field(default_factory=dict)  # by contestant
    filtering: Readings = field(default_factory=dict)
    filters: dict[str, Facts] = field(default_factory=dict)
    serving: Readings = field(default_factory=dict)
    busy: dict[str, Facts] = field(default_factory=dict)

    def rate(self, contestant: str, measure: str) -> float | None:
        """Return the median queries per second of a contestant of parts a to c."""
        return median(self.contest, f"{contestant}: {measure}", "queries_per_s")

    def best_faiss(self, measure: str) -> tuple[float | None, str]:
        """Return the best rate of plain FAISS, and whose it is."""
        names = [name for name in self.recalls if name.startswith("FAISS ")]
        return max(((self.rate(name, measure) or 0.0, name) for name in names), default=(None, ""))

    def facts(self, ratios: list[Ratio]) -> dict[str, Any]:
        """Return everything for JSON, without single calls' times."""
        plan = {key: value for key, value in asdict(self.plan).items() if key != "scratch"}
        parts = {name: dict(_brief(getattr(self, name))) for name in ("contest", "filtering", "serving")}
        builds = {"faiss": self.faiss, "peers": self.peers, "likewise": self.likewise}
        return {
            "plan": plan,
            "builds": builds,
            "recalls": self.recalls,
            "filters": self.filters,
            **parts,
            "busy": self.busy,
            "ratios": [ratio.facts() for ratio in ratios],
        }


def _brief(readings: Readings) -> Iterator[tuple[str, list[Facts]]]:
    for name, taken in readings.items():
        yield name, [{key: value for key, value in one.items() if key != "latencies"} for one in taken]
