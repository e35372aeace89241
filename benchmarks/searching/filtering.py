"""Part e: the same searches with filters that match ever fewer rows, in turns with searches without one."""

from __future__ import annotations

from searching.contest import data_directory
from searching.filters import FILTERS
from searching.plan import Plan
from searching.stages import Facts, Readings, Say, Seat, rounds, start

MEASURES = ("single", "batch")
UNFILTERED = "no filter"


def filtering(plan: Plan, say: Say) -> tuple[Readings, dict[str, Facts]]:
    """Return the readings, and of each filter its first use, its recall and how many counts of hits were wrong."""
    with start(plan, "likewise_peer", str(data_directory(plan))) as child:
        child.ask("open", timeout=plan.patience)
        seats = {UNFILTERED: Seat(child, "bare_")}
        seats |= {each.name: Seat(child, f"filter{number}_") for number, each in enumerate(FILTERS)}
        seats[UNFILTERED].take("single", seconds=plan.seconds)  # so that the filter alone is what is new
        facts: dict[str, Facts] = {}
        for name, seat in seats.items():
            say(f"filter {name}: first use, recall")
            first = seat.take("first")["ms"]
            facts[name] = {"first_ms": first, **seat.take("recall", timeout=plan.patience)}
        turns = {
            f"{name}: {measure}": lambda s=seat, m=measure: s.take(m, seconds=plan.seconds)
            for measure in MEASURES
            for name, seat in seats.items()
        }
        return rounds(plan, turns, say), facts
