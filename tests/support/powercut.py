"""What a disk may hold after a power cut: replays what `disk.c` recorded, and forgets what was not synced.

Of each file, what was written before its last sync is there; of what came later, any part may be, torn at 512
bytes. Of each folder, the names as of its last sync; later ones as far as they came, in order, as journals keep them.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

CC = os.environ.get("CC", "cc")
needs_c = pytest.mark.skipif(shutil.which(CC) is None, reason=f"no C compiler: {CC} is not on the PATH")
SECTOR = 512
_RECORD = struct.Struct("<c7xQQQQQ")


def compile_shim(folder: Path) -> Path:
    """Return the shared library made of `disk.c`."""
    made = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run([CC, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl", "-lpthread"], check=True)
    return made


class Record(NamedTuple):
    """One thing that happened: C(reate), W(rite), T(runcate), S(ync), R(ename) or U(nlink)."""

    kind: str
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


def records(log: Path) -> list[Record]:
    """Read what was recorded."""
    return list(_records(log.read_bytes()))


def _records(raw: bytes) -> Iterator[Record]:
    at = 0
    while at < len(raw):
        kind, inode, offset, *lengths = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        parts = []
        for length in lengths:
            parts.append(raw[at : at + length])
            at += length
        yield Record(kind.decode(), inode, offset, parts[0].decode(), parts[1].decode(), parts[2])


@dataclass
class _File:
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)  # None cuts it there
    synced: int = 0

    def contents(self, keep: float, luck: random.Random) -> bytes:
        data = bytearray()
        for number, (offset, change) in enumerate(self.changes):
            sure = number < self.synced
            if change is None:
                if sure or luck.random() < keep:
                    del data[offset:]
                    data.extend(b"\0" * (offset - len(data)))
                continue
            pieces = [(0, change)] if sure else [(n, change[n : n + SECTOR]) for n in range(0, len(change), SECTOR)]
            whole = sure or luck.random() < keep
            torn = not whole and luck.random() < keep
            for start, piece in pieces:
                if whole or (torn and luck.random() < 0.5):
                    begin = offset + start
                    data.extend(b"\0" * (begin - len(data)))
                    data[begin : begin + len(piece)] = piece
        return bytes(data)


@dataclass
class _Folder:
    changes: list[tuple[str, _File | None]] = field(default_factory=list)  # None takes the name away
    synced: int = 0

    def names(self, keep: float, luck: random.Random) -> dict[str, _File]:
        later = len(self.changes) - self.synced
        upto = self.synced + (later if keep >= 1 else luck.randint(0, later) if keep else 0)
        names: dict[str, _File] = {}
        for name, file in self.changes[:upto]:
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return names


def cut(happened: Sequence[Record], keep: float, luck: random.Random, root: Path, into: Path) -> None:
    """Write to `into` what is left of `root` if the power fails after all that happened.

    `keep`: how likely something survives that was not synced; 0: nothing does.
    """
    for path, names in _folders(happened, root).items():
        place = into / Path(path).relative_to(root)
        place.mkdir(parents=True, exist_ok=True)
        for name, file in names.names(keep, luck).items():
            if not name.endswith("-shm"):  # shared memory, which is no memory of a disk's
                (place / name).write_bytes(file.contents(keep, luck))


def _folders(happened: Sequence[Record], root: Path) -> dict[str, _Folder]:
    """Return what became of each folder below `root`."""
    folders: dict[str, _Folder] = defaultdict(_Folder, {str(root): _Folder()})
    inodes: dict[int, _File] = {}
    there: dict[str, _File] = {}
    for each in happened:
        folder, name = os.path.split(each.path)
        if root not in {Path(each.path), *Path(each.path).parents}:
            continue
        if each.kind == "C":
            there[each.path] = inodes[each.inode] = _File()
            folders[folder].changes.append((name, inodes[each.inode]))
        elif each.kind == "U" and each.path in there:
            del there[each.path]
            folders[folder].changes.append((name, None))
        elif each.kind == "R":
            file = there[each.other] = there.pop(each.path)
            to, new = os.path.split(each.other)
            folders[to].changes.append((new, file))
            folders[folder].changes.append((name, None))
        elif each.kind == "S":
            synced = folders[each.path] if each.path in folders else inodes[each.inode]
            synced.synced = len(synced.changes)
        elif each.inode in inodes:
            inodes[each.inode].changes.append((each.offset, each.data if each.kind == "W" else None))
    return folders
