"""Tars: samples by key, sidecars as labels and attributes, nothing trusted."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from likewise.errors import InvalidArgument
from likewise_indexer.sources import Archive, open_source


def pack(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]  # the mode is a parameter
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


MEMBERS = {
    "./train/001.cls": b"cat\n",
    "./train/001.jpg": b"first",
    "./train/001.seg.png": b"a mask",
    "./train/001.json": json.dumps({"year": 2020}).encode(),
    "./train/002.PNG": b"second",
    "./train/002.json": json.dumps({"label": 7, "year": 2021}).encode(),
    "./train/002.txt": b" a caption\n",
    "./train/003.txt": b"no image here",
    "./val/001.jpg": b"third",
}


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_pairs_members_by_key(tmp_path: Path, ending: str, mode: str) -> None:
    file = pack(tmp_path / f"set{ending}", MEMBERS, mode)
    first, second, third = open_source(file)
    assert (first.id, first.data, first.label, first.attributes) == ("train/001", b"first", "cat", {"year": 2020})
    assert (second.id, second.data, second.label) == ("train/002", b"second", "7")
    assert second.attributes == {"year": 2021, "text": "a caption"}
    assert (third.id, third.label) == ("val/001", None)
    assert first.uri == f"{file}#./train/001.jpg"
    assert sorted(tmp_path.iterdir()) == [file]


def test_labels_from_folders_or_none(tmp_path: Path) -> None:
    file = pack(tmp_path / "set.tar", MEMBERS)
    assert [entry.label for entry in open_source(file, label_from="dir")] == ["train", "train", "val"]
    assert [entry.label for entry in open_source(file, label_from="none")] == [None, None, None]


def test_large_members_are_reported_and_not_read(tmp_path: Path) -> None:
    file = pack(tmp_path / "set.tar", {"a.jpg": b"x" * 100, "b.jpg": b"y", "c.jpg": b"z", "c.json": b" " * 2**21})
    entries = list(Archive(file, max_bytes=10))
    assert [entry.error and entry.error.code for entry in entries] == ["OUT_OF_RANGE", None, "OUT_OF_RANGE"]
    assert entries[0].data is None


def test_broken_sidecars_fail_their_own_sample_only(tmp_path: Path) -> None:
    members = {"a.jpg": b"x", "a.json": b"{", "b.jpg": b"y", "b.json": b"[" * 100_000, "c.jpg": b"z", "c.cls": b"\xff"}
    entries = list(open_source(pack(tmp_path / "set.tar", {**members, "d.jpg": b"fine"})))
    assert [entry.error is None for entry in entries] == [False, False, False, True]


def test_links_devices_and_names_that_climb_are_harmless(tmp_path: Path) -> None:
    file = tmp_path / "set.tar"
    with tarfile.open(file, "w") as tar:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../climb.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    [entry] = open_source(file)
    assert (entry.id, entry.data) == ("../../climb", b"x")


def test_a_damaged_archive_yields_what_is_before_the_damage_and_then_raises(tmp_path: Path) -> None:
    file = pack(tmp_path / "set.tar", {f"{i}.jpg": b"x" * 5000 for i in range(10)})
    file.write_bytes(file.read_bytes()[:30_000])
    found: list[str] = []
    with pytest.raises(InvalidArgument, match="as a tar"):
        found.extend(entry.id for entry in open_source(file))
    file.write_bytes(b"no tar at all")
    with pytest.raises(InvalidArgument, match="as a tar"):
        list(open_source(file))
