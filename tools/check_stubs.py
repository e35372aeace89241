"""Fail when the committed stubs differ from what the .proto files generate."""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from generate_stubs import ROOT, generate


def main() -> int:
    """Return 1 and name the files that differ, 0 when there are none."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh, committed = Path(scratch) / "likewise_proto", ROOT / "proto/likewise_proto"
        generate(fresh)
        names = {path.relative_to(base) for base in (fresh, committed) for path in base.rglob("*.py*")}
        names = {name for name in names if "__pycache__" not in name.parts}
        stale = [name for name in sorted(names) if not same(fresh / name, committed / name)]
    for name in stale:
        print(f"proto/likewise_proto/{name} is not what the .proto files give: run `make proto`")  # noqa: T201
    return 1 if stale else 0


def same(one: Path, other: Path) -> bool:
    """Whether both files exist with equal bytes."""
    return one.exists() and other.exists() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    sys.exit(main())
