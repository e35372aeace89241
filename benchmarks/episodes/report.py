"""What the cells say together: tables for people, and the same as values for JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from episodes.contest import Cell
from episodes.manifest import UNKNOWN
from episodes.statistics import Interval, interval, paired
from episodes.systems import AUTO, SYSTEMS
from episodes.unknowns import OURS, OURS_BARE, OURS_NARROW

PEERS = [system.name for system in SYSTEMS if system.peer]
SYSTEM_NAMES = [AUTO, *(system.name for system in SYSTEMS)]
DIGITS = 5
RATES = ("known rejected", "near accepted", "far accepted")


def facts(cell: Cell) -> dict[str, Any]:
    """Return a cell's intervals, and how far `auto` is from each other system, paired."""
    values: dict[str, Any] = {}
    for name, own in cell.values.items():
        entry: dict[str, Any] = {"mean": interval(list(own.values()))._asdict()}
        if name != AUTO and AUTO in cell.values:
            entry["auto_minus"] = paired(cell.values[AUTO], own)._asdict()
        if cell.part == UNKNOWN.name and name.partition(": ")[0] != OURS and ": " in name:
            kind = name.rpartition(": ")[2]
            entry["novelty_minus"] = paired(cell.values[f"{OURS}: {kind}"], own)._asdict()
        values[name] = entry
    found = {
        "backbone": cell.backbone,
        "set": cell.set,
        "part": cell.part,
        "shots": cell.shots,
        "classes": cell.classes,
    }
    more = {"ece_of_auto": cell.ece, "auto_became": dict(cell.kinds), "queries": cell.queries}
    return {**found, **more, "ncm_differs_from_easyfsl": cell.differing, "systems": values}


def averages(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return each system's mean over the sets, with the interval over sets, by backbone, part and shots.

    `compared` is the mean paired difference of `auto` on the sets that the system has an answer for: a system that
    only small problems are given to has an average over those, which no other's compares with.
    """
    groups: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.backbone, cell.part, cell.shots].append(cell)
        groups["all", cell.part, cell.shots].append(cell)
    found = []
    for (backbone, part, shots), members in groups.items():
        systems: dict[str, Any] = {}
        for name in dict.fromkeys(name for cell in members for name in cell.values):
            having = [cell for cell in members if name in cell.values]
            entry: dict[str, Any] = {
                "mean": float(np.mean([np.mean(list(cell.values[name].values())) for cell in having])),
                "sets": len(having),
            }
            if part == UNKNOWN.name:
                if ": " in name and not name.startswith(OURS + ":"):
                    base = f"{OURS}: {name.rpartition(': ')[2]}"
                    entry["compared"] = _over(having, base, name)
            elif name != AUTO:
                entry["compared"] = _over(having, AUTO, name)
            systems[name] = entry
        ece = [cell.ece for cell in members if cell.ece is not None]
        found.append(
            {
                "backbone": backbone,
                "part": part,
                "shots": shots,
                "sets": len(members),
                "ece_of_auto": float(np.mean(ece)) if ece else None,
                "systems": systems,
            }
        )
    return found


def _over(cells: Sequence[Cell], ours: str, theirs: str) -> dict[str, Any]:
    return interval([paired(cell.values[ours], cell.values[theirs]).mean for cell in cells])._asdict()


def worst(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return where `auto` is behind a peer by more than the paired 95 % interval, the furthest first.

    With some two hundred comparisons one in forty falls there by chance alone.
    """
    behind = []
    for cell in cells:
        for peer in PEERS:
            if AUTO not in cell.values or peer not in cell.values:
                continue
            gap = paired(cell.values[AUTO], cell.values[peer])
            if gap.half is not None and gap.mean + gap.half < 0:
                place = {"backbone": cell.backbone, "set": cell.set, "part": cell.part, "shots": cell.shots}
                behind.append({**place, "peer": peer, **gap._asdict()})
    return sorted(behind, key=lambda entry: entry["mean"])


def comparisons(cells: Sequence[Cell]) -> int:
    """Return how many differences `worst` has looked at."""
    return sum(AUTO in cell.values and peer in cell.values for cell in cells for peer in PEERS)


def table(cells: Sequence[Cell]) -> str:
    """Return the averages for people."""
    lines: list[str] = []
    for group in averages(cells):
        if group["backbone"] == "all":
            continue
        title = f"{group['backbone']}, {group['part']}, {group['shots']} shot(s), {group['sets']} sets"
        ece = "" if group["ece_of_auto"] is None else f"; ECE of auto {100 * group['ece_of_auto']:.1f}"
        lines += ["", title + ece, *_rows(group)]
    lines += [
        "",
        f"NCM differs from easyfsl's in {sum(c.differing for c in cells)} of {sum(c.queries for c in cells)} answers",
    ]
    behind = worst(cells)
    lines.append(f"auto is behind a peer by more than the paired interval in {len(behind)} of {comparisons(cells)}")
    for entry in behind:
        gap = Interval(entry["mean"], entry["half"], entry["n"])
        lines.append(
            f"  {entry['backbone']} {entry['set']} {entry['part']} {entry['shots']}: {entry['peer']} {gap.percent()}"
        )
    return "\n".join(lines)


def _rows(group: dict[str, Any]) -> Iterator[str]:
    systems = group["systems"]
    if group["part"] != UNKNOWN.name:
        for name in SYSTEM_NAMES:
            if name in systems:
                compared = systems[name].get("compared")
                gap = "" if compared is None else f"   auto {_signed(compared)}"
                fewer = "" if systems[name]["sets"] == group["sets"] else f"   ({systems[name]['sets']} sets)"
                yield f"  {name:32}{100 * systems[name]['mean']:6.1f}{gap}{fewer}"
        return
    for name in RATES:
        yield f"  {name:32}{100 * systems[name]['mean']:6.1f}"
    scores = {name.rpartition(": ")[0] for name in systems if ": " in name}
    both = {name: sum(systems[f"{name}: {kind}"]["mean"] for kind in ("near", "far")) / 2 for name in scores}
    own = [OURS, OURS_BARE, OURS_NARROW]
    for name in [*own, *sorted(scores - set(own), key=lambda name: -both[name])]:
        near, far = (100 * systems[f"{name}: {kind}"]["mean"] for kind in ("near", "far"))
        yield f"  {name:32}near {near:5.1f}  far {far:5.1f}  both {100 * both[name]:5.1f}"


def _signed(compared: dict[str, Any]) -> str:
    half = compared["half"]
    return f"{100 * compared['mean']:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def written(document: dict[str, Any]) -> str:
    """Return the document as JSON, a cell in a line, shares to five digits."""
    text = json.dumps(_rounded({**document, "cells": []}), indent=1, allow_nan=False)
    cells = [json.dumps(_rounded(cell), separators=(",", ":"), allow_nan=False) for cell in document["cells"]]
    return text.replace('"cells": []', '"cells": [\n' + ",\n".join(cells) + "\n]") + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
