"""Folders and patterns: which files, in which order, with which ids and labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from likewise.errors import InvalidArgument, NotFound
from likewise_indexer.sources import open_source
from likewise_indexer.sources.folder import matches


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_yields_images_sorted_without_hidden_files_and_others(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/1.png", "a/.hidden.jpg", ".git/x.jpg", "a/notes.txt", "a/z.webp", "a/deep/q.jpeg")
    source = open_source(tmp_path)
    assert [entry.id for entry in source] == ["a/deep/q.jpeg", "a/z.webp", "b/1.png", "b/2.JPG"]
    assert source.count() == 4
    assert [entry.id for entry in source] == [entry.id for entry in source]


def test_uri_is_the_absolute_path_wherever_it_is_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/a.jpg")
    monkeypatch.chdir(tmp_path)
    [entry] = open_source("set")
    assert entry.uri == f"{tmp_path}/set/a.jpg"
    assert open_source("set").name == open_source(tmp_path / "set").name


def test_auto_labels_by_folder_only_where_there_are_nothing_but_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "sets/cat/1.jpg", "sets/dog/2.jpg", "sets/readme.md")
    touch(tmp_path, "mixed/cat/1.jpg", "mixed/dog/2.jpg", "mixed/3.jpg", "one/cat/1.jpg")
    assert [entry.label for entry in open_source(tmp_path / "sets")] == ["cat", "dog"]
    assert [entry.label for entry in open_source(tmp_path / "mixed")] == [None] * 3
    assert [entry.label for entry in open_source(tmp_path / "one")] == [None]
    assert open_source(tmp_path / "one").labels == ""


def test_dir_labels_by_the_parent_folder_and_none_by_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "pets/1.jpg", "pets/train/cat/2.jpg")
    assert [e.label for e in open_source(tmp_path / "pets", label_from="dir")] == ["pets", "cat"]
    assert [e.label for e in open_source(tmp_path / "pets", label_from="none")] == [None, None]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "root/a/1.jpg")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/c.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    assert [entry.id for entry in open_source(tmp_path / "root")] == ["a/1.jpg", "b/x.jpg", "c.jpg"]


def test_names_that_are_no_unicode_get_a_readable_id(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    [entry] = open_source(tmp_path)
    assert entry.id == r"caf\xe9.jpg"
    assert entry.stat()[0] == 1


def test_a_pattern_chooses_files_and_keeps_ids_relative_to_the_folder_before_it(tmp_path: Path) -> None:
    touch(tmp_path, "p/a/1.png", "p/a/2.jpg", "p/3.png", "p/b/c/4.png", "p/b/c/5.scan")
    assert [e.id for e in open_source(f"{tmp_path}/p/**/*.png")] == ["3.png", "a/1.png", "b/c/4.png"]
    assert [e.id for e in open_source(tmp_path / "p", pattern="*/*.jpg")] == ["a/2.jpg"]
    assert [e.id for e in open_source(tmp_path / "p", pattern="**/*.scan")] == ["b/c/5.scan"]
    assert open_source(f"{tmp_path}/p/*.png").name != open_source(tmp_path / "p").name


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a.jpg", "*.jpg", True),
        ("x/a.jpg", "*.jpg", False),
        ("x/y/a.jpg", "**/*.jpg", True),
        ("a.jpg", "**/*.jpg", True),
        ("x/y/a.jpg", "x/**", True),
        ("x/y/a.jpg", "x/**/a.*", True),
        ("z/y/a.jpg", "x/**/a.*", False),
        ("x/a1.jpg", "x/a[0-9].jpg", True),
    ],
)
def test_matches_as_a_shell_would(path: str, pattern: str, expected: bool) -> None:
    assert matches(path.split("/"), pattern.split("/")) is expected


def test_what_is_no_source_is_refused_with_what_would_be(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(NotFound, match="there is no"):
        open_source(tmp_path / "missing")
    with pytest.raises(InvalidArgument, match="no folder, no list"):
        open_source(tmp_path / "a.jpg")
    with pytest.raises(InvalidArgument, match="auto, dir, csv, none"):
        open_source(tmp_path, label_from="folders")
    with pytest.raises(InvalidArgument, match="no label column"):
        open_source(tmp_path, label_from="csv")


def test_an_unreadable_folder_is_an_error_and_not_an_empty_source(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    source = open_source(tmp_path)
    (tmp_path / "a/1.jpg").unlink()
    (tmp_path / "a").rmdir()
    tmp_path.rmdir()
    with pytest.raises(InvalidArgument, match="cannot read the folder"):
        list(source)
    tmp_path.mkdir()
