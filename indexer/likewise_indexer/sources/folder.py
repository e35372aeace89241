"""A folder, or a pattern of files in it: walked in sorted order, one directory in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from likewise.errors import InvalidArgument
from likewise_indexer.sources.base import Entry, folder_label, is_image, readable

CLASSES = 2  # one folder is no choice between classes


class Folder:
    """The images below `root`, or with a pattern ("**/*.png") the files whose relative path matches it.

    Ids are the relative paths. Hidden files and folders are left out; symbolic links are followed,
    except into a folder that they are inside of. `label_from`: dir, none, or auto, which is dir where
    `root` holds nothing but class folders.
    """

    def __init__(self, root: Path, *, pattern: str = "", label_from: str = "auto") -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100  # Path.absolute() keeps ".."
        self._pattern = pattern.split("/") if pattern else []
        self.name = f"{self.root}/{pattern}" if pattern else str(self.root)
        if label_from == "csv":
            raise InvalidArgument(f"{root} is a folder, which has no label column: use --label-from dir or none")
        wanted = label_from == "dir" or (label_from == "auto" and holds_class_folders(self.root))
        self.labels = "folder names" if wanted else ""

    def __iter__(self) -> Iterator[Entry]:
        """Yield an entry per file, sorted within each directory."""
        for relative in self._files():
            item_id = readable(relative)
            yield Entry(
                id=item_id,
                uri=f"{readable(self.root.as_posix())}/{item_id}",
                path=self.root / relative,
                label=folder_label(item_id, readable(self.root.name)) if self.labels else None,
            )

    def count(self) -> int:
        """Return the number of files that would be read; walks the tree."""
        return sum(1 for _ in self._files())

    def _files(self) -> Iterator[str]:
        for relative in _walk(str(self.root), "", ()):
            if matches(relative.split("/"), self._pattern) if self._pattern else is_image(relative):
                yield relative


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield relative paths below a folder; `above` are the folders that the walk is inside of."""
    try:
        status = os.stat(folder)  # noqa: PTH116  # this and scandir are what makes a walk of millions quick
        with os.scandir(folder) as found:
            children = sorted((child.name, child.is_dir()) for child in found if not child.name.startswith("."))
    except OSError as error:
        raise InvalidArgument(f"cannot read the folder {folder}: {error.strerror or error}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name, is_folder in children:
        if is_folder:
            yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", (*above, here))  # noqa: PTH118
        else:
            yield f"{prefix}{name}"


def holds_class_folders(root: Path) -> bool:
    """Return whether a folder holds at least two folders, and no image beside them."""
    folders = 0
    with os.scandir(root) as children:
        for child in children:
            if child.name.startswith("."):
                continue
            if child.is_dir():
                folders += 1
            elif is_image(child.name):
                return False
    return folders >= CLASSES


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a pattern, in which ** is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(parts[i:], pattern[1:] or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])
