"""A tar of images in the WebDataset manner, read as a stream: nothing is ever written to disk."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likewise.errors import InvalidArgument, LikewiseError, OutOfRange
from likewise_indexer.sources.base import IMAGE_SUFFIXES, Entry, folder_label, readable

MAX_SIDECAR_BYTES = 2**20
SIDECARS = ("cls", "txt", "json")
DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError)


@dataclass(slots=True)
class _Sample:
    """Members that share a key; the first image among them counts."""

    key: str
    image: str = ""  # the member's name
    data: bytes = b""
    texts: dict[str, bytes] = field(default_factory=dict)  # sidecars by extension
    error: LikewiseError | None = None


class Archive:
    """The samples of a .tar, .tar.gz or .tgz: consecutive members with one key (the name up to the first dot).

    The id is the key. `.cls`, or "label" in `.json`, is the label; the rest of `.json` and `.txt` (as
    "text") become attributes. Images over `max_bytes` are reported and not read.
    """

    def __init__(self, file: Path, *, label_from: str = "auto", max_bytes: int = 32 * 2**20) -> None:
        self.file = Path(os.path.abspath(file))  # noqa: PTH100  # Path.absolute() keeps ".."
        self.name = str(self.file)
        self._max_bytes = max_bytes
        self._label_from = label_from
        self.labels = {"dir": "folder names", "none": ""}.get(label_from, ".cls and .json members")

    def __iter__(self) -> Iterator[Entry]:
        """Yield an entry per sample with an image. Raises InvalidArgument where the archive is damaged."""
        mtime_ns = self.file.stat().st_mtime_ns  # of the archive: its members' own are often all 0
        for sample in self._samples():
            if sample.image:
                yield self._entry(sample, mtime_ns)

    def count(self) -> None:
        """Return None: counting would mean reading it all."""

    def _samples(self) -> Iterator[_Sample]:
        try:
            with tarfile.open(self.file, "r|*") as tar:
                sample = _Sample("")
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would remember every one of them
                    if not member.isreg():
                        continue
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, extension = name.partition(".")
                    if not stem:
                        continue
                    key = f"{folder}{slash}{stem}"
                    if key != sample.key:
                        yield sample
                        sample = _Sample(key)
                    self._take(sample, tar, member, extension.lower())
                yield sample
        except DAMAGE as error:
            raise InvalidArgument(f"cannot read {self.file} as a tar: {error}") from error

    def _take(self, sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
        is_image = f".{extension}" in IMAGE_SUFFIXES and not sample.image
        if not is_image and extension not in SIDECARS:
            return
        limit = self._max_bytes if is_image else MAX_SIDECAR_BYTES
        if is_image:
            sample.image = member.name
        if member.size > limit:
            sample.error = OutOfRange(f"{member.name} has {member.size} bytes, over the limit of {limit}")
            return
        stream = tar.extractfile(member)
        data = stream.read() if stream else b""
        if is_image:
            sample.data = data
        else:
            sample.texts[extension] = data

    def _entry(self, sample: _Sample, mtime_ns: int) -> Entry:
        item_id = readable(sample.key)
        uri = readable(f"{self.file}#{sample.image}")
        if sample.error:
            return Entry(id=item_id, uri=uri, error=sample.error)
        try:
            attributes: dict[str, Any] = {}
            if "json" in sample.texts:
                found = json.loads(sample.texts["json"])
                attributes = found if isinstance(found, dict) else {"json": found}
            if "txt" in sample.texts:
                attributes["text"] = sample.texts["txt"].decode().strip()
            label = sample.texts["cls"].decode().strip() if "cls" in sample.texts else None
        except (ValueError, RecursionError) as error:
            return Entry(id=item_id, uri=uri, error=InvalidArgument(f"its .cls, .txt or .json is unreadable: {error}"))
        if self._label_from in ("auto", "csv"):
            told = attributes.pop("label", None)
            label = label or (None if told is None else str(told))
        else:
            label = folder_label(item_id) if self._label_from == "dir" else None
        return Entry(id=item_id, uri=uri, data=sample.data, mtime_ns=mtime_ns, label=label, attributes=attributes)
