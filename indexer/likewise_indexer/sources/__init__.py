"""Sources: what a path given on the command line stands for."""

from __future__ import annotations

from pathlib import Path

from likewise.errors import InvalidArgument, NotFound
from likewise_indexer.sources.archive import Archive
from likewise_indexer.sources.base import Entry, Source
from likewise_indexer.sources.folder import Folder
from likewise_indexer.sources.table import Columns, Table

__all__ = ["Archive", "Columns", "Entry", "Folder", "Source", "Table", "open_source"]

LABELS = ("auto", "dir", "csv", "none")
TABLES = (".csv", ".tsv", ".parquet", ".pq")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
MAGIC = "*?["


def open_source(
    path: str | Path, *, label_from: str = "auto", pattern: str = "", columns: Columns | None = None
) -> Source:
    """Return the source that a path is: a folder, a list, a tar, or a pattern such as "photos/**/*.png".

    Raises NotFound where there is none, InvalidArgument where it is something else or does not go with
    the other arguments.
    """
    if label_from not in LABELS:
        raise InvalidArgument(f"--label-from is {label_from!r}: use one of {', '.join(LABELS)}")
    where = Path(path)
    if not where.exists():
        if any(sign in str(path) for sign in MAGIC) and not pattern:
            where, pattern = split_pattern(where)
        if not where.is_dir():
            raise NotFound(f"there is no {path}")
    if where.is_dir():
        return Folder(where, pattern=pattern, label_from=label_from)
    if pattern:
        raise InvalidArgument(f"--pattern chooses files of a folder, and {path} is none")
    name = where.name.lower()
    if name.endswith(TABLES):
        return Table(where, columns=columns, label_from=label_from)
    if name.endswith(ARCHIVES):
        return Archive(where, label_from=label_from)
    raise InvalidArgument(
        f"{path} is no folder, no list ({', '.join(TABLES)}) and no archive ({', '.join(ARCHIVES)}); "
        "for a few files use their folder with --pattern"
    )


def split_pattern(path: Path) -> tuple[Path, str]:
    """Return the folder before the first part with a wildcard, and the pattern from there on."""
    first = next(i for i, part in enumerate(path.parts) if any(sign in part for sign in MAGIC))
    return Path(*path.parts[:first]), "/".join(path.parts[first:])
