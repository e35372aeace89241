"""Pictures seen before: answered without a decode or a forward, from bounded memory, never from another space."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from likewise_server.backbones.base import Space
from likewise_server.errors import Internal, InvalidArgument
from likewise_server.pipeline.cache import OVERHEAD, EmbeddingCache
from likewise_server.pipeline.jobs import Embedded
from support.fakes import BAD, Rig, ask, asking, encoded, until


def vector(*values: float) -> Any:
    return np.array(values, np.float32)


async def test_a_picture_seen_before_costs_no_decode_and_no_forward(rig: Rig) -> None:
    batcher, fake = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone()
    assert await ask(batcher, fake, 1, 2) == [1, 2]
    assert (rig.counts.hits, rig.counts.misses) == (0, 2)
    assert await ask(batcher, fake, 2, 1, bulk=True) == [2, 1]
    assert await ask(batcher, fake, 3, 1) == [3, 1]
    assert (rig.counts.hits, rig.counts.misses) == (3, 3)
    assert rig.decode.begun == [1, 2, 3]
    assert sorted(value for batch in fake.batches for value in batch) == [1, 2, 3]
    assert 0 < batcher.cache.bytes <= 2**20


async def test_a_hit_is_answered_while_the_device_is_busy(rig: Rig) -> None:
    batcher, fake = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone()
    assert await ask(batcher, fake, 1) == [1]
    fake.launching.shut()
    busy = asking(batcher, fake, 2)
    await until(lambda: len(fake.batches) == 2)
    assert await ask(batcher, fake, 1) == [1]
    assert not busy.done()
    fake.launching.open()
    assert await busy == [2]


async def test_spaces_do_not_share_what_is_kept(rig: Rig) -> None:
    batcher, fake, other = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone(), rig.backbone("other")
    assert await ask(batcher, fake, 1) == [1]
    assert await ask(batcher, fake, 1, layer="x") == [10_001]
    assert await ask(batcher, other, 1) == [1]
    assert await ask(batcher, fake, 1, layer="x") == [10_001]
    assert await ask(batcher, fake, 1) == [1]
    assert rig.decode.begun == [1, 1, 1]
    assert (len(fake.batches), len(other.batches)) == (2, 1)


async def test_what_a_caller_does_to_its_vector_changes_no_other_answer(rig: Rig) -> None:
    batcher, fake = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone()
    space = Space("f", 1, fake.ref())
    for _ in range(3):
        [outcome] = await batcher.embed(encoded(5), fake, space)  # type: ignore[arg-type]  # a fake
        assert isinstance(outcome, Embedded)
        assert outcome.vector.tolist() == [5]
        try:
            outcome.vector[:] = 6
        except ValueError as error:
            assert "read-only" in str(error)  # noqa: PT017  # either way is fine, as long as the next is right
    assert len(fake.batches) == 1


async def test_failures_are_not_kept(rig: Rig) -> None:
    batcher, fake = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone()
    fake.broken = {1}
    assert isinstance((await ask(batcher, fake, 1))[0], Internal)
    fake.broken = set()
    assert await ask(batcher, fake, 1) == [1]
    space = Space("f", 1, fake.ref())
    for _ in range(2):
        [outcome] = await batcher.embed([BAD], fake, space)  # type: ignore[arg-type]  # a fake
        assert isinstance(outcome, InvalidArgument)
    assert rig.counts.hits == 0
    assert len(batcher.cache) == 1


async def test_images_of_a_batch_that_was_halved_are_kept(rig: Rig) -> None:
    batcher, fake = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone()
    fake.broken = {2}
    first = await ask(batcher, fake, 1, 2, 3)
    assert (first[0], first[2]) == (1, 3)
    assert await ask(batcher, fake, 3, 1) == [3, 1]
    assert rig.counts.hits == 2


async def test_without_a_cache_nothing_is_hashed_or_looked_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []

    def watched(data: bytes, fingerprint: str) -> bytes:
        hashed.append(data)
        return data + fingerprint.encode()

    monkeypatch.setattr(EmbeddingCache, "key", staticmethod(watched))
    batcher, fake = rig.batcher(cache=EmbeddingCache(0)), rig.backbone()
    assert [await ask(batcher, fake, 1) for _ in range(3)] == [[1]] * 3
    assert rig.decode.begun == [1, 1, 1]
    assert hashed == []
    assert (rig.counts.hits, rig.counts.misses, batcher.cache.bytes) == (0, 0, 0)
    cached = rig.batcher(cache=EmbeddingCache(2**20))
    assert await ask(cached, fake, 1) == [1]
    assert len(hashed) == 1, "it was watched where it matters"


def test_memory_is_bounded_and_what_was_unused_longest_goes_first() -> None:
    size = vector(*range(10)).nbytes + OVERHEAD
    cache = EmbeddingCache(3 * size)
    for index in range(3):
        cache.put(bytes([index]), vector(*range(10)) + index)
    assert cache.get(b"\0") is not None  # used just now
    cache.put(b"\3", vector(*range(10)) + 3)
    assert cache.get(b"\1") is None
    assert [cache.get(bytes([index])) is not None for index in (0, 2, 3)] == [True] * 3
    assert (len(cache), cache.bytes) == (3, 3 * size)
    for index in range(1000):
        cache.put(index.to_bytes(4), vector(*range(10)))
        assert cache.bytes <= 3 * size
    cache.put(b"wide", np.zeros(100_000, np.float32))
    assert cache.get(b"wide") is None, "wider than the whole cache"
    assert len(cache) == 3


def test_the_same_picture_put_twice_counts_once() -> None:
    cache = EmbeddingCache(2**20)
    cache.put(b"key", vector(1, 2))
    before = cache.bytes
    cache.put(b"key", vector(1, 2))
    assert (len(cache), cache.bytes) == (1, before)


def test_a_kept_vector_is_a_copy_that_keeps_no_batch_alive() -> None:
    cache, batch = EmbeddingCache(2**20), np.arange(6, dtype=np.float32).reshape(3, 2)
    cache.put(b"key", batch[1])
    batch[:] = 0
    kept = cache.get(b"key")
    assert kept is not None
    assert kept.tolist() == [2, 3]
    assert kept.base is None
    assert not kept.flags.writeable


def test_keys_tell_pictures_and_spaces_apart() -> None:
    keys = {EmbeddingCache.key(data, space) for data in (b"", b"a", b"ab") for space in ("", "b", "c")}
    assert len(keys) == 9
    assert EmbeddingCache.key(b"a", "b") == EmbeddingCache.key(b"a", "b")


def test_many_threads_may_put_and_get() -> None:
    size = vector(0, 0).nbytes + OVERHEAD
    cache = EmbeddingCache(50 * size)
    wrong: list[object] = []

    def work(seed: int) -> None:
        numbers = np.random.default_rng(seed)
        for number in numbers.integers(0, 200, 2000).tolist():
            key = int(number).to_bytes(2)
            found = cache.get(key)
            if found is not None and found.tolist() != [number, -number]:
                wrong.append(found)
            cache.put(key, vector(number, -number))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.bytes == len(cache) * size <= 50 * size
