"""Search with a GPU beside the store: a stand-in with a GPU's limits here, a real one where there is one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import faiss as untyped
import numpy as np
import pytest

from likewise_server.store import NewItem, policy
from likewise_server.store.embedded import EmbeddedStore
from likewise_server.store.gpu import MOST, FaissDevice, Gpu, detect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

faiss: Any = untyped
DIM, ROWS = 24, 4000
PATIENCE_S = 60.0
AMPLE = 2**30


class Limited:
    """A CPU index that does what a GPU's does, and no more; it counts how often it was asked."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._busy = threading.Lock()
        self.asked = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        self._index.add(rows)

    def search(self, queries: NDArray[np.float32], k: int, params: Any = None) -> Any:
        assert self._busy.acquire(blocking=False), "two threads at once"
        try:
            self.asked += 1
            assert k <= MOST
            if params is not None:
                assert params.sel is None
                assert params.nprobe <= MOST
                return self._index.search(queries, k, params=params)
            return self._index.search(queries, k)
        finally:
            self._busy.release()


class StandIn:
    """A device without a GPU."""

    def __init__(self) -> None:
        self.made: list[Limited] = []
        self.full = False

    def copied(self, index: Any) -> Any:
        return self._made(faiss.clone_index(index))

    def flat(self, dim: int, metric: int) -> Any:
        return self._made(faiss.IndexFlat(dim, metric))

    def _made(self, index: Any) -> Limited:
        if self.full:
            raise RuntimeError("out of memory")
        self.made.append(Limited(index))
        return self.made[-1]

    @property
    def asked(self) -> int:
        return sum(each.asked for each in self.made)


@pytest.fixture(scope="module", autouse=True)
def early() -> Iterator[None]:
    """Have thousands of rows treated as hundreds of thousands are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "SEAL", 400)
        patch.setattr(policy, "SHOWN_TO_ALL", 1000)
        patch.setattr("likewise_server.store.finding.FEW", 50)
        yield


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 40, count)] + 0.4 * rng.normal(size=(count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def filled(store: EmbeddedStore, index: str) -> NDArray[np.float32]:
    """Fill a collection and wait until it has its segment."""
    rows = vectors(ROWS, 1)
    store.create_collection("c", dim=DIM, fingerprint="f", index=index)
    new = [NewItem(str(n), row, attributes={"even": n % 2 == 0}) for n, row in enumerate(rows)]
    store.upsert("c", new, fingerprint="f")
    store.search("c", rows[:1], 1)
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        state = store.get_collection("c").state
        if state.kind != "exact" and not state.building:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"still {state}")


def recall(store: EmbeddedStore, rows: NDArray[np.float32], alive: NDArray[np.int64], k: int, where: str = "") -> float:
    """Return the share of the true neighbours among the hits, of which there have to be enough."""
    queries = vectors(30, 2)
    found = store.search("c", queries, k, where=where)
    assert all(len(hits) == min(k, len(alive)) for hits in found.hits)
    true = alive[np.argsort(-(queries @ rows[alive].T), axis=1)[:, :k]]
    got = [{int(hit.item.id) for hit in hits} for hits in found.hits]
    assert set().union(*got) <= set(alive.tolist())
    return float(np.mean([len(set(t.tolist()) & g) / len(g) for t, g in zip(true, got, strict=True)]))


@pytest.fixture
def device() -> StandIn:
    return StandIn()


@pytest.mark.parametrize("index", ["auto", "IVF16,Flat", "IVF16,SQ8"])
def test_the_gpu_proposes_and_the_stored_rows_decide(tmp_path: Path, device: StandIn, index: str) -> None:
    with EmbeddedStore(tmp_path, gpu=Gpu(device, AMPLE)) as store:
        rows = filled(store, index)
        before = device.asked
        assert recall(store, rows, np.arange(ROWS), 10) >= 0.99
        assert device.asked > before
        [hit] = store.search("c", rows[7:8], 1).hits[0]
        assert hit.item.id == "7"
        assert hit.score == pytest.approx(1.0, abs=1e-5)


def test_what_a_gpu_cannot_do_the_cpu_does(tmp_path: Path, device: StandIn) -> None:
    with EmbeddedStore(tmp_path, gpu=Gpu(device, AMPLE)) as store:
        rows = filled(store, "auto")
        assert recall(store, rows, np.arange(0, ROWS, 2), 10, where="even = true") >= 0.98  # none is told what to skip
        before = device.asked
        assert recall(store, rows, np.arange(ROWS), 3000) >= 0.99  # more than a GPU gives
        assert device.asked == before


def test_deleted_rows_are_left_out_and_do_not_cost_hits(tmp_path: Path, device: StandIn) -> None:
    with EmbeddedStore(tmp_path, gpu=Gpu(device, AMPLE)) as store:
        rows = filled(store, "auto")
        gone = np.arange(0, 100)
        store.delete("c", [str(n) for n in gone])
        before = device.asked
        assert recall(store, rows, np.arange(100, ROWS), 10) >= 0.99
        assert device.asked > before


def test_without_room_or_when_it_fails_the_cpu_searches(tmp_path: Path, device: StandIn) -> None:
    with EmbeddedStore(tmp_path / "small", gpu=Gpu(device, 1000)) as store:
        assert recall(store, filled(store, "auto"), np.arange(ROWS), 10) >= 0.99
    device.full = True
    with EmbeddedStore(tmp_path / "full", gpu=Gpu(device, AMPLE)) as store:
        assert recall(store, filled(store, "auto"), np.arange(ROWS), 10) >= 0.99
    assert not device.made


def test_memory_comes_back_with_the_segment(device: StandIn) -> None:
    rows = vectors(1000, 3)
    index = faiss.index_factory(DIM, "IVF4,RaBitQ", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    gpu = Gpu(device, 2 * rows.size)
    held = gpu.hold(index, rows)
    assert held is not None
    assert gpu.hold(index, rows) is None
    del held
    assert gpu.hold(index, rows) is not None


def test_threads_take_turns(tmp_path: Path, device: StandIn) -> None:
    with EmbeddedStore(tmp_path, gpu=Gpu(device, AMPLE)) as store:
        rows = filled(store, "auto")
        queries = vectors(200, 4)
        counts: list[int] = []

        def ask(first: int) -> None:
            counts.extend(len(store.search("c", queries[n : n + 1], 5).hits[0]) for n in range(first, 200, 4))

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [5] * 200
        assert recall(store, rows, np.arange(ROWS), 10) >= 0.99


def test_no_gpu_is_no_error() -> None:
    assert detect(0) is None
    if not faiss.get_num_gpus():
        assert detect(AMPLE) is None


@pytest.mark.skipif(not faiss.get_num_gpus(), reason="no CUDA device that FAISS sees")
@pytest.mark.parametrize("index", ["auto", "IVF16,Flat", "IVF16,SQ8"])
def test_a_real_gpu(tmp_path: Path, index: str) -> None:
    with EmbeddedStore(tmp_path, gpu=Gpu(FaissDevice(), AMPLE)) as store:
        rows = filled(store, index)
        assert recall(store, rows, np.arange(ROWS), 10) >= 0.99
        store.delete("c", [str(n) for n in range(100)])
        assert recall(store, rows, np.arange(100, ROWS), 10) >= 0.99
