"""Data directories that earlier releases wrote are opened, brought up to date, and have all that they had."""

from __future__ import annotations

import runpy
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from contract.store_model import Model, check_search
from likewise_server.store import Store
from likewise_server.store.backup import backup, restore, verify
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.schema import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from likewise_server.store import NewItem

FIXTURES = Path(__file__).parents[2] / "fixtures"
FORMATS = range(1, len(MIGRATIONS) + 1)
items: Callable[[int, int], list[NewItem]] = runpy.run_path(str(FIXTURES / "make_data.py"))["items"]


def unpacked(number: int, folder: Path) -> Path:
    with tarfile.open(FIXTURES / f"data-{number}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "data"


def check_all(store: Store) -> None:
    pets = Model("cosine")
    for item in items(1, 90):
        pets.upsert(item)
    del pets.items["i003"], pets.items["i004"]
    for item in items(2, 110)[85:]:
        pets.upsert(item)
    bare = Model("l2")
    for item in items(3, 10):
        bare.upsert(item)
    queries = np.random.default_rng(7).normal(size=(4, 8)).astype(np.float32)
    for name, model in (("pets", pets), ("bare", bare)):
        found, _ = store.list_items(name, page_size=1000, vectors=True)
        assert {i.id: (i.label, i.attributes, i.uri, i.content_hash) for i in found} == {
            i.id: (i.label, i.attributes, i.uri, i.content_hash) for i in model.items.values()
        }
        for each in found:
            np.testing.assert_array_equal(each.vector, model.items[each.id].vector)
        for where in ("", "label = 'cat' and year >= 2010", "tag.x = 'é7'"):
            result = store.search(name, queries, 30, where=where)
            if not where or result.filtered_count is not None:
                check_search(model, result, queries, 30, where)
        assert store.count(name, "label = 'cat'") == len(model.matching("label = 'cat'"))
    (head,) = store.list_heads("pets", blobs=True)[0]
    assert (head.version, head.blob, head.meta) == (2, b"second", {"classes": ["cat", "dog"]})
    assert store.fsck(repair=True).problems in ([], ["collection 'pets': the segments lack rows of the database"])
    assert store.fsck().problems == []


@pytest.mark.parametrize("number", FORMATS)
def test_a_data_directory_of_an_earlier_release_is_opened(tmp_path: Path, number: int) -> None:
    data = unpacked(number, tmp_path)
    for _ in range(2):
        with EmbeddedStore(data) as store:
            check_all(store)
            again = store.create_collection("bare", dim=8, metric="l2", fingerprint="space-2", request_id="once")
            assert again.count == 10
    with EmbeddedStore(data) as store:
        assert store.save_head("pets", "h", "knn", {}, b"third").version == 3
        assert store.upsert("pets", items(4, 5), fingerprint="space-1") == ["updated"] * 3 + ["created"] * 2


@pytest.mark.parametrize("number", FORMATS)
def test_a_backup_of_an_earlier_release_is_restored(tmp_path: Path, number: int) -> None:
    data = unpacked(number, tmp_path)
    made = backup(data, tmp_path / "out")
    assert made.format == number, "the data directory is read as it is"
    assert verify(tmp_path / "out") == made
    restore(tmp_path / "out", tmp_path / "new")
    with EmbeddedStore(tmp_path / "new") as store:
        check_all(store)
