"""What runs where: several devices at once, a forward launched before the one before has ended, halving what fails."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from likewise_server.backbones import registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.errors import Internal
from support.fakes import Rig, Valve, ask, asking, until
from support.pictures import photograph_jpegs
from support.server import serving
from support.waiting import PATIENCE_S

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


async def test_a_slow_device_holds_up_only_the_batch_it_has(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4, devices=("cpu", "cpu")), rig.backbone()
    fake.slow = {0: Valve(), 1: Valve()}
    for valve in fake.slow.values():
        valve.shut()
    tasks = [asking(batcher, fake, value) for value in range(100)]
    await until(lambda: sorted(fake.devices) == [0, 1])
    held = len(fake.batches[fake.devices.index(1)])
    fake.slow[0].open()
    await until(lambda: sum(task.done() for task in tasks) == 100 - held)
    assert fake.devices.count(1) == 1
    assert fake.devices.count(0) > 10
    fake.slow[1].open()
    assert [await task for task in tasks] == [[value] for value in range(100)]
    assert sorted(value for batch in fake.batches for value in batch) == list(range(100)), "each ran once"


async def test_a_failing_device_makes_the_server_unhealthy_though_another_works(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=1, devices=("cpu", "cpu")), rig.backbone()
    fake.slow = {0: Valve()}
    fake.slow[0].shut()
    fake.broken = {13}
    batcher.queues.call(0, fake.slow[0].pass_through)  # so that all goes to device 1
    await until(lambda: fake.slow[0].held)
    for _ in range(8):
        assert batcher.alive()
        assert isinstance((await ask(batcher, fake, 13))[0], Internal)
    assert set(fake.devices) == {1}
    assert not batcher.alive()
    fake.slow[0].open()
    batcher.devices[1].probe(fake, fake.ref(), np.zeros((2, 2, 3), np.uint8))  # type: ignore[arg-type]  # a fake
    assert batcher.alive()


async def test_two_replicas_share_the_work_and_give_the_vectors_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = photograph_jpegs() * 4
    async with serving(tmp_path / "one", cache_bytes=0, max_batch=4) as one:
        expected = await one.engine.embedder.embed(images)
    both = threading.Barrier(2)
    devices: list[int] = []
    launch = Backbone.launch

    def watched(self: Backbone, pixels: Any, ref: Any, device: int = 0) -> Any:
        if device not in devices and len(pixels) > 1:  # the first batch of each waits for that of the other
            devices.append(device)
            both.wait(PATIENCE_S)
        return launch(self, pixels, ref, device)

    async with serving(tmp_path / "two", device="cpu,cpu", cache_bytes=0, max_batch=4) as two:
        monkeypatch.setattr(Backbone, "launch", watched)
        result = await two.engine.embedder.embed(images)
    assert sorted(devices) == [0, 1]
    assert not result.errors
    assert not expected.errors
    assert result.space == expected.space
    np.testing.assert_allclose(result.vectors, expected.vectors, rtol=1e-3, atol=1e-4)
    assert np.ptp(result.vectors, axis=0).max() > 0.1


@pytest.mark.parametrize(
    ("device", "order"),
    [
        ("cuda:0", ["launch 1", "launch 2", "end 1", "launch 3", "end 2", "end 3"]),
        ("cpu", ["launch 1", "end 1", "launch 2", "end 2", "launch 3", "end 3"]),
    ],
)
async def test_the_next_forward_is_launched_before_the_one_before_has_ended_where_that_overlaps(
    rig: Rig, device: str, order: list[str]
) -> None:
    batcher, fake = rig.batcher(max_batch=1, devices=(device,), decode_threads=1), rig.backbone()
    fake.launching.shut()
    tasks = [asking(batcher, fake, value) for value in (1, 2, 3)]
    await until(lambda: fake.batches and len(rig.decode.begun) == 3 and batcher.queues.waiting() == 2)
    fake.launching.open()
    assert [await task for task in tasks] == [[1], [2], [3]]
    assert [f"{event} {values[0]}" for event, values in fake.events] == order


async def test_on_a_cpu_no_answer_waits_for_the_next_batch(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=1), rig.backbone()
    fake.launching.shut()
    first, second = asking(batcher, fake, 1), asking(batcher, fake, 2)
    await until(lambda: fake.batches and batcher.queues.waiting() == 1)
    fake.launching.let(1)
    await until(lambda: fake.batches == [[1], [2]])
    assert await first == [1]
    assert not second.done()
    fake.launching.open()
    assert await second == [2]


async def test_where_forwards_overlap_an_answer_does_not_wait_for_images_that_are_not_there_yet(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4, devices=("cuda:0",)), rig.backbone()
    assert await ask(batcher, fake, 1) == [1]
    fake.finishing.shut()
    first = asking(batcher, fake, 2)
    await until(lambda: fake.finishing.held)
    second = asking(batcher, fake, 3)
    await until(lambda: batcher.queues.waiting() == 1)
    fake.finishing.let(1)
    assert await first == [2]
    fake.finishing.open()
    assert await second == [3]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("step", ["launch", "finish"])
async def test_a_batch_that_fails_is_halved_until_the_bad_images_stand_alone(rig: Rig, device: str, step: str) -> None:
    batcher, fake = rig.batcher(max_batch=8, devices=(device,)), rig.backbone()
    fake.breaks_at, fake.broken = step, {13}
    fake.launching.shut()
    hold = asking(batcher, fake, 0)
    await until(lambda: fake.batches)
    tasks = [asking(batcher, fake, value) for value in range(10, 18)]
    await until(lambda: len(rig.decode.begun) == 9 and batcher.queues.waiting() == 8)
    fake.launching.open()
    assert await hold == [0]
    results = [outcome for task in tasks for outcome in await task]
    assert isinstance(results[3], Internal)
    assert "thirteen" not in results[3].message
    assert [*results[:3], *results[4:]] == [10, 11, 12, 14, 15, 16, 17]
    assert fake.batches[1:] == [[*range(10, 18)], [10, 11, 12, 13], [10, 11], [12, 13], [12], [13], [14, 15, 16, 17]]
    assert batcher.alive()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("step", ["launch", "finish"])
async def test_a_failing_batch_spoils_neither_the_one_before_nor_the_one_behind(
    rig: Rig, device: str, step: str
) -> None:
    batcher, fake = rig.batcher(max_batch=2, devices=(device,)), rig.backbone()
    fake.breaks_at, fake.broken = step, {12, 13}
    fake.launching.shut()
    tasks = [asking(batcher, fake, value) for value in range(10, 16)]
    await until(lambda: fake.batches and len(rig.decode.begun) >= 5)
    fake.launching.open()
    results = [outcome for task in tasks for outcome in await task]
    assert [type(outcome) for outcome in results[2:4]] == [Internal, Internal]
    assert [*results[:2], *results[4:]] == [10, 11, 14, 15]


async def test_a_call_waits_for_the_forward_that_runs_and_not_for_those_that_are_queued(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=1, devices=("cuda:0",)), rig.backbone()
    fake.launching.shut()
    tasks = [asking(batcher, fake, value) for value in range(8)]
    await until(lambda: fake.batches)
    called = asyncio.create_task(batcher.on_device(0, lambda: list(fake.events)))
    await asyncio.sleep(0)
    fake.launching.open()
    events = await called
    assert [values for event, values in events if event == "launch"] == [[0]]
    assert ("end", [0]) in events
    assert [await task for task in tasks] == [[value] for value in range(8)]


async def test_forwards_and_stages_are_counted(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=2), rig.backbone()
    await ask(batcher, fake, *range(5))
    assert sum(images for *_, images, _ in rig.counts.batches) == 5
    assert {(name, device) for name, device, *_ in rig.counts.batches} == {("fake", "cpu")}
    names = [name for name, _ in rig.counts.stages]
    assert {name: names.count(name) for name in names} == {"decode_wait": 5, "decode": 5, "device_wait": 5}
    assert all(seconds >= 0 for _, seconds in rig.counts.stages)


async def test_a_device_without_requests_says_so(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    for value in range(1000):  # the first may find it before it waits at all
        await ask(batcher, fake, value)
        if ("cpu", "no_requests") in rig.counts.idle:
            break
    assert ("cpu", "no_requests") in rig.counts.idle


async def test_a_device_that_waits_for_the_decoder_says_so(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()
    rig.decode.valve.shut()
    task = asking(batcher, fake, 1)
    await until(lambda: rig.decode.begun)
    rig.decode.valve.open()
    assert await task == [1]
    assert ("cpu", "decoding") in rig.counts.idle


@pytest.mark.gpu
@needs_cuda
def test_a_replica_on_a_gpu_gives_the_vectors_of_the_cpu() -> None:
    load: Any = registry.load
    cpu = load("likewise-tiny", weights_dir=None, device=torch.device("cpu"), precision="fp32")
    gpu = load("likewise-tiny", weights_dir=None, device=torch.device("cuda", 0), precision="fp32")
    gpu.replicate(torch.device("cuda", 0))
    pixels = np.random.default_rng(0).integers(0, 256, (33, 128, 128, 3), np.uint8)
    expected = cpu.launch(list(pixels), cpu.ref())()
    running = [gpu.launch(list(pixels), gpu.ref(), device) for device in (0, 1, 0)]  # all before any has ended
    for finish in running:
        got = finish()
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((got * expected).sum(axis=1) / norms).min() > 0.999
    on_gpu = [torch.from_numpy(image).cuda() for image in pixels]
    np.testing.assert_allclose(gpu.launch(on_gpu, gpu.ref())(), running[0](), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_cuda
async def test_a_server_with_two_copies_on_a_gpu_answers_as_one_on_the_cpu(tmp_path: Path) -> None:
    images = photograph_jpegs() * 8
    async with serving(tmp_path / "cpu", cache_bytes=0) as cpu:
        expected = await cpu.engine.embedder.embed(images)
    async with serving(tmp_path / "gpu", device="cuda:0,cuda:0", cache_bytes=0, max_batch=8) as gpu:
        result = await gpu.engine.embedder.embed(images)
    assert not result.errors
    norms = np.linalg.norm(result.vectors, axis=1) * np.linalg.norm(expected.vectors, axis=1)
    assert ((result.vectors * expected.vectors).sum(axis=1) / norms).min() > 0.999
