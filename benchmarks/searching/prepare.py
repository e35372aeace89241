"""Make the data of a plan and what is true of it, unless that is on disk already. A process of its own.

python -m searching.prepare PLAN_JSON [filters]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np

from common.processes import BENCHMARKS
from searching import shared, synthetic, truth
from searching.data import Dataset
from searching.filters import FILTERS, Filter
from searching.plan import SHARED_KIND, Plan


def main() -> None:
    """Write what is missing."""
    plan = Plan.parse(sys.argv[1])
    faiss.omp_set_num_threads(plan.threads)
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not (plan.folder / "queries.npy").exists():  # it is written last
        if plan.kind == SHARED_KIND:
            shared.write(plan, _embeddings(Path(plan.scratch) / "embeddings.npy"))
        else:
            synthetic.write(plan)
    data = Dataset(plan)
    if not (plan.folder / "truth.npy").exists():
        _save(plan.folder / "truth.npy", truth.nearest(data, data.queries, plan.k))
    if sys.argv[2:] == ["filters"]:
        for each in FILTERS:
            path = truth_path(plan, each)
            if not path.exists():
                _save(path, truth.nearest(data, data.queries, plan.k, each.matching(data)))


def truth_path(plan: Plan, which: Filter) -> Path:
    """Return where the true neighbours among a filter's rows lie."""
    return plan.folder / f"truth-{FILTERS.index(which)}.npy"


def _embeddings(path: Path) -> Path:
    if not path.exists():
        subprocess.run([sys.executable, "-m", "searching.shared", str(path)], check=True, cwd=BENCHMARKS)
    return path


def _save(path: Path, array: np.ndarray) -> None:
    """Write all or nothing."""
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array)
    partial.rename(path)


if __name__ == "__main__":
    main()
