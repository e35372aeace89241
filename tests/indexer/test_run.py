"""Runs against a real server: what is embedded, what is left alone, what is reported."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from likewise import Client
from likewise.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from likewise_indexer import Entry, Summary, index_source
from likewise_indexer.sources import Columns, open_source
from support.pictures import jpeg, photographs

Index = Callable[..., Summary]
OTHER = jpeg(photographs()["rocket"].crop((5, 5, 105, 105)))


def numbers(summary: Summary) -> tuple[int, int, int, int, int]:
    return summary.new, summary.updated, summary.unchanged, summary.skipped, summary.failed


@pytest.fixture
def index(counted: Any, name: str, lw: Client) -> Iterator[Index]:
    """Index into one new collection; the summary's images that went through the network are checked against it."""

    def run(source: Any, *, embedded: int | None = None, **options: Any) -> Summary:
        before = counted.embedded()
        summary = index_source(source, collection=name, server=counted.address, progress=False, **options)
        if embedded is not None:
            assert counted.embedded() - before == embedded
        return summary

    yield run
    if name in [info.name for info in lw.collections()]:
        lw.delete_collection(name)


def failures(summary: Summary) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(summary.failures).read_text().splitlines()]


def test_indexes_a_folder_with_ids_labels_and_uris(index: Index, photos: Path, stored: Any, name: str) -> None:
    summary = index(photos, embedded=12)
    assert numbers(summary) == (12, 0, 0, 0, 0)
    assert (summary.exit_code, summary.stopped, summary.labels) == (0, "", "folder names")
    items = stored(name)
    assert [item.id for item in items] == sorted(f"class{i % 2}/{i:04}.jpg" for i in range(12))
    assert {item.label for item in items} == {"class0", "class1"}
    assert items[0].uri == f"{photos}/class0/0000.jpg"
    assert failures(summary) == []


def test_a_second_run_uploads_nothing(index: Index, photos: Path) -> None:
    index(photos)
    assert numbers(index(photos, embedded=0)) == (0, 0, 0, 12, 0)


def test_touched_files_are_hashed_and_not_uploaded(index: Index, photos: Path) -> None:
    index(photos)
    for path in photos.rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    assert numbers(index(photos, embedded=0)) == (0, 0, 0, 12, 0)
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"x" * path.stat().st_size)  # not seen, for size and time are now those in the journal
        os.utime(path, ns=(1, 1))
    assert numbers(index(photos, embedded=0)) == (0, 0, 0, 12, 0)


def test_only_what_is_new_or_changed_is_embedded(index: Index, photos: Path, lw: Client, name: str) -> None:
    index(photos)
    was = lw.collection(name).get(["class0/0000.jpg"])[0]
    (photos / "class0/0000.jpg").write_bytes(OTHER)
    (photos / "class1/new.jpg").write_bytes(OTHER)
    assert numbers(index(photos, embedded=2)) == (1, 1, 0, 11, 0)
    now = lw.collection(name).get(["class0/0000.jpg"])[0]
    assert was
    assert now
    assert was.content_hash != now.content_hash


def test_another_label_is_stored_without_embedding_again(index: Index, photos: Path, lw: Client, name: str) -> None:
    index(photos)
    assert numbers(index(photos, label_from="none", embedded=0)) == (0, 12, 0, 0, 0)
    assert lw.collection(name).count("label = 'class0'") == 0


def test_bad_files_are_listed_and_the_others_stored(index: Index, photos: Path, lw: Client, name: str) -> None:
    (photos / "class0/0000.jpg").write_bytes(b"not an image")
    (photos / "class0/empty.jpg").write_bytes(b"")
    (photos / "class1/gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "class1/pipe.jpg")
    summary = index(photos)
    assert numbers(summary) == (11, 0, 0, 0, 4)
    assert summary.exit_code == 3
    assert {(line["id"], line["code"]) for line in failures(summary)} == {
        ("class0/0000.jpg", "INVALID_ARGUMENT"),
        ("class0/empty.jpg", "INVALID_ARGUMENT"),
        ("class1/gone.jpg", "NOT_FOUND"),
        ("class1/pipe.jpg", "INVALID_ARGUMENT"),
    }
    assert all(line["uri"].startswith(str(photos)) and line["message"] for line in failures(summary))
    assert lw.collection(name).count() == 11


def test_what_failed_is_tried_again(index: Index, photos: Path) -> None:
    good = (photos / "class0/0000.jpg").read_bytes()
    (photos / "class0/0000.jpg").write_bytes(b"not an image")
    assert numbers(index(photos)) == (11, 0, 0, 0, 1)
    assert numbers(index(photos)) == (0, 0, 0, 11, 1)
    (photos / "class0/0000.jpg").write_bytes(good)
    summary = index(photos, embedded=1)
    assert numbers(summary) == (1, 0, 0, 11, 0)
    assert failures(summary) == []


def test_without_its_journal_nothing_is_embedded_again(index: Index, photos: Path) -> None:
    journal = Path(index(photos).journal)
    assert numbers(index(photos, fresh=True, embedded=0)) == (0, 0, 12, 0, 0)
    journal.unlink()
    assert numbers(index(photos, embedded=0)) == (0, 0, 12, 0, 0)


def test_a_collection_made_anew_is_filled_anew(index: Index, photos: Path, lw: Client, name: str) -> None:
    index(photos)
    lw.delete_collection(name)
    summary = index(photos, embedded=12)
    assert numbers(summary) == (12, 0, 0, 0, 0)
    assert "created anew" in summary.notes[0]


def test_items_deleted_on_the_server_are_pointed_out_and_fresh_puts_them_back(
    index: Index, photos: Path, lw: Client, name: str
) -> None:
    index(photos)
    lw.collection(name).delete(["class0/0000.jpg"])
    assert "the collection holds 11: --fresh" in index(photos).notes[0]
    assert numbers(index(photos, fresh=True, embedded=1)) == (1, 0, 11, 0, 0)


def test_prune_deletes_what_is_gone_but_not_all_of_an_empty_source(
    index: Index, photos: Path, lw: Client, name: str
) -> None:
    index(photos)
    lw.collection(name).add([OTHER], ids=["somebody else's"])
    (photos / "class0/0000.jpg").unlink()
    assert index(photos).pruned == 0
    assert index(photos, prune=True).pruned == 1
    assert lw.collection(name).get(["class0/0000.jpg"]) == [None]
    for path in photos.rglob("*.jpg"):
        path.unlink()
    summary = index(photos, prune=True)
    assert summary.pruned == 0
    assert "nothing was pruned" in summary.notes[-1]
    assert lw.collection(name).count() == 12


def test_limit_takes_the_first(index: Index, photos: Path) -> None:
    assert index(photos, limit=5).total == 5
    assert numbers(index(photos)) == (7, 0, 0, 5, 0)


def test_indexes_a_list_with_attributes(index: Index, photos: Path, stored: Any, name: str) -> None:
    rows = [f"photos/class{i % 2}/{i:04}.jpg,k{i},breed{i},{2000 + i}" for i in range(12)]
    file = photos.parent / "list.csv"
    file.write_text("\n".join(["path,key,breed,year", *rows, "photos/missing.jpg,k99,x,1", "photos/twice.jpg,k3,x,1"]))
    source = open_source(file, columns=Columns(id="key", label="breed"))
    summary = index(source, embedded=12)
    assert numbers(summary) == (12, 0, 0, 0, 2)
    assert {(line["id"], line["code"]) for line in failures(summary)} == {
        ("k99", "NOT_FOUND"),
        ("k3", "INVALID_ARGUMENT"),
    }
    [item] = [item for item in stored(name) if item.attributes.get("year") == 2003]
    assert (item.id, item.label, item.attributes) == ("k3", "breed3", {"year": 2003})
    assert numbers(index(source, embedded=0)) == (0, 0, 0, 12, 2)


def test_indexes_a_tar_as_a_stream(index: Index, photos: Path, lw: Client, name: str) -> None:
    file = photos.parent / "set.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
            tar.add(path, f"{number:03}.jpg")
            data = json.dumps({"label": path.parent.name, "number": number}).encode()
            member = tarfile.TarInfo(f"{number:03}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert numbers(index(file, embedded=12)) == (12, 0, 0, 0, 0)
    item = lw.collection(name).get(["004"])[0]
    assert item
    assert (item.label, item.attributes, item.uri) == ("class0", {"number": 4}, f"{file}#004.jpg")
    os.utime(file)
    assert numbers(index(file, embedded=0)) == (0, 0, 0, 12, 0)


def test_a_source_that_breaks_stops_the_run_with_what_came_before_stored(index: Index, photos: Path) -> None:
    class Breaking:
        name = "breaking"
        labels = ""

        def __iter__(self) -> Iterator[Entry]:
            for path in sorted(photos.rglob("*.jpg"))[:7]:
                yield Entry(path.name, str(path), path)
            raise InvalidArgument("the disk is on fire")

        def count(self) -> None:
            return None

    summary = index(Breaking(), embedded=7)
    assert (summary.new, summary.stopped, summary.exit_code) == (7, "the disk is on fire", 1)


def test_a_run_that_is_asked_to_stop_can_be_continued(index: Index, photos: Path) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 11

    summary = index(photos, stop=stop)
    assert (summary.stopped, summary.exit_code) == ("interrupted", 1)
    assert 0 < summary.new < 12
    assert numbers(index(photos, embedded=12 - summary.new)) == (12 - summary.new, 0, 0, summary.new, 0)


def test_other_backbones_metrics_and_kinds_of_collection_are_refused(
    index: Index, photos: Path, lw: Client, name: str
) -> None:
    index(photos, backbone="likewise-tiny", metric="cosine", limit=1)
    with pytest.raises(FailedPrecondition, match="is of backbone 'likewise-tiny', not 'likewise-tiny"):
        index(photos, backbone="likewise-tiny?pooling=max")
    with pytest.raises(FailedPrecondition, match="has metric 'cosine', not 'l2'"):
        index(photos, metric="l2")
    lw.delete_collection(name)
    lw.create_collection(name, dim=4)
    with pytest.raises(FailedPrecondition, match="vectors from elsewhere"):
        index(photos)


def test_an_unknown_backbone_is_an_error(index: Index, photos: Path) -> None:
    with pytest.raises((NotFound, FailedPrecondition)):
        index(photos, backbone="resnet9000")


def test_no_server_is_said_soon(photos: Path) -> None:
    with pytest.raises(Unavailable, match="likewise serve"):
        index_source(photos, collection="c", server="127.0.0.1:1")


async def test_memory_holds_few_images_at_a_time(counted: Any, name: str, photos: Path, lw: Client) -> None:
    """The source must not run far ahead of the acknowledgements."""
    from likewise_indexer import run  # noqa: PLC0415

    first = photos / "class0/0000.jpg"
    ahead: list[int] = []
    listed = 0

    class Endless:
        name = "endless"
        labels = ""

        def __iter__(self) -> Iterator[Entry]:
            nonlocal listed
            for number in range(3000):
                listed += 1
                yield Entry(f"{number:05}", str(first), first)

        def count(self) -> None:
            return None

    async def watch() -> None:
        while True:
            done = await asyncio.to_thread(lw.collection(name).count)
            ahead.append(listed - done)
            await asyncio.sleep(0.05)

    lw.create_collection(name)
    watcher = asyncio.create_task(watch())
    summary = await run(Endless(), collection=name, server=counted.address, progress=False, limit=700)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert summary.new == 700
    assert max(ahead) < 500
    lw.delete_collection(name)
