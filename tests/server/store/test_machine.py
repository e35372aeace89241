"""Random writes, searches, checkpoints, restarts and power cuts, against a dict and brute force."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contract.store_model import Model, check_search
from likewise_server.errors import NotFound
from likewise_server.store import Metric, NewItem, NewLabel, filtering, finding, policy
from likewise_server.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from collections.abc import Sequence

DIM = 3
IDS = st.sampled_from([f"i{n}" for n in range(12)])
VECTORS = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM).filter(any)
WHERES = st.sampled_from(["", "label = 'a'", "label is null", "n >= 2", "not n = 1", "n in (0, 3) or id < 'i3'"])
ITEMS = st.builds(
    lambda item_id, vector, label, n: NewItem(item_id, np.array(vector, np.float32), label, {"n": n}),
    IDS,
    VECTORS,
    st.sampled_from([None, "a", "b"]),
    st.integers(0, 3),
)


class StoreMachine(RuleBasedStateMachine):
    index = "exact"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.lives = 0
        self.model = Model("cosine")
        self.store = EmbeddedStore(self.data)

    @property
    def data(self) -> Path:
        return self.folder / str(self.lives)

    @initialize(metric=st.sampled_from(["cosine", "dot", "l2"]))
    def create(self, metric: Metric) -> None:
        self.model = Model(metric)
        self.store.create_collection("c", dim=DIM, metric=metric, fingerprint="f", index=self.index)

    @rule(items=st.lists(ITEMS, min_size=1, max_size=6))
    def upsert(self, items: Sequence[NewItem]) -> None:
        assert self.store.upsert("c", items, fingerprint="f") == [self.model.upsert(item) for item in items]

    @rule(labels=st.lists(st.tuples(IDS, st.sampled_from([None, "a", "b"])), max_size=4))
    def relabel(self, labels: list[tuple[str, str | None]]) -> None:
        found = self.store.relabel("c", [NewLabel(*each) for each in labels])
        for (item_id, label), outcome in zip(labels, found, strict=True):
            if item_id in self.model.items:
                assert outcome == self.model.relabel(item_id, label)
            else:
                assert isinstance(outcome, NotFound)

    @rule(ids=st.lists(IDS, max_size=4))
    def delete(self, ids: list[str]) -> None:
        known = set(ids) & set(self.model.items)
        assert self.store.delete("c", ids) == len(known)
        for item_id in known:
            del self.model.items[item_id]

    @rule(where=WHERES.filter(bool))
    def delete_matching(self, where: str) -> None:
        gone = self.model.matching(where)
        assert self.store.delete("c", where=where) == len(gone)
        for item in gone:
            del self.model.items[item.id]

    @rule(query=VECTORS, k=st.integers(1, 15), where=WHERES, exclude=st.lists(IDS, max_size=2))
    def search(self, query: list[int], k: int, where: str, exclude: list[str]) -> None:
        queries = np.array([query, query[::-1]], np.float32)
        result = self.store.search("c", queries, k, where=where, exclude_ids=exclude)
        if where and result.filtered_count is None:  # the answer was found without counting
            result = replace(result, filtered_count=len(self.model.matching(where)))
        if result.exact:
            check_search(self.model, result, queries, k, where, exclude)
            return
        for hits, asked in zip(result.hits, queries, strict=True):
            everything = dict(self.model.search(asked, len(self.model.items), where, exclude))
            got = [(hit.item.id, hit.score) for hit in hits]
            assert len(dict(got)) == len(got) == min(k, len(everything))
            best = sorted(everything.values(), reverse=True)[: len(got)]
            np.testing.assert_allclose([score for _, score in got], best, rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose([everything[i] for i, _ in got], best, rtol=1e-5, atol=1e-3)

    @rule()
    def checkpoint(self) -> None:
        self.store.checkpoint("c")

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = EmbeddedStore(self.data)

    @rule()
    def power_cut(self) -> None:
        """Go on with the files as they are now, as after a kill."""
        index = self.store._indexes.of(self.store._find("c"))
        with index.building:  # a copy takes a while, a power cut does not
            shutil.copytree(self.data, self.folder / str(self.lives + 1))
        self.store.close()
        self.lives += 1
        self.store = EmbeddedStore(self.data)

    @precondition(lambda self: self.lives < 3)
    @rule(where=st.integers(0, 10**6))
    def damage_segment(self, where: int) -> None:
        self.store.close()
        for file in (self.data / "segments").iterdir():
            data = bytearray(file.read_bytes())
            data[where % len(data)] ^= 0x10
            file.write_bytes(data)
        self.store = EmbeddedStore(self.data)

    @invariant()
    def everything_is_there(self) -> None:
        if not self.model.items:
            return
        assert self.store.count("c") == len(self.model.items)
        found, token = self.store.list_items("c", vectors=True)
        assert token == ""
        assert [item.id for item in found] == sorted(self.model.items)
        for item in found:
            expected = self.model.items[item.id]
            assert (item.label, item.attributes) == (expected.label, expected.attributes)
            np.testing.assert_array_equal(item.vector, expected.vector)

    def teardown(self) -> None:
        # A damaged segment that no search has met yet is found only now.
        report = self.store.fsck(repair=True)
        assert all("its contents are not" in problem for problem in report.problems), report.problems
        assert self.store.fsck().problems == []
        self.store.close()
        shutil.rmtree(self.folder)


class ApproximateMachine(StoreMachine):
    """The same with an approximate index on a handful of rows, built in this process: its one list has them all."""

    index = "IVF1,Flat"

    def __init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(policy, "SHOWN_TO_ALL", 1)
        self.patch.setattr(policy.Plan, "apart", False)
        self.patch.setattr(finding, "FEW", 1)
        self.patch.setattr(filtering, "SMALL", 2)
        self.patch.setattr(filtering, "LEAST_MATCHING", 1)
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self.patch.undo()


for machine in (StoreMachine, ApproximateMachine):
    machine.TestCase.settings = settings(
        max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
TestStoreMachine = StoreMachine.TestCase
TestApproximateMachine = ApproximateMachine.TestCase
