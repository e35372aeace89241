"""Memory that runs out, devices that fail for good, and threads that die: who is answered what, and what goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from likewise_server.errors import Internal, ResourceExhausted, Unavailable
from likewise_server.pipeline import devices
from likewise_server.pipeline.batcher import Batcher
from likewise_server.pipeline.faults import fault_of
from support.fakes import FakeBackbone, Rig, ask, asking, until

ASSERTED = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError(ASSERTED), "device"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "device"),
        (torch.AcceleratorError("CUDA error: invalid configuration argument"), "image"),
        (ValueError("CUDA error: device-side assert triggered"), "image"),
        (RuntimeError("device-side assert triggered"), "image"),
    ],
)
def test_a_failure_is_told_by_what_torch_raises(error: Exception, fault: str) -> None:
    assert fault_of(error) == fault


class Small(FakeBackbone):
    """Has memory for so many images at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def launch(self, pixels: Any, ref: Any, device: int = 0) -> Any:
        finish = super().launch(pixels, ref, device)
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return finish


async def together(batcher: Batcher, fake: Small, *values: int) -> list[Any]:
    """Embed images of which several are ready before the device takes the first."""
    batches = len(fake.batches)
    fake.launching.shut()
    hold = asking(batcher, fake, 0)
    await until(lambda: len(fake.batches) > batches)
    task = asking(batcher, fake, *values)
    await until(lambda: batcher.queues._ready >= min(len(values), 16))
    fake.launching.open()
    assert await hold == [0]
    return list(await task)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
async def test_a_batch_that_does_not_fit_is_halved_and_later_ones_are_smaller_for_a_while(
    rig: Rig, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, fake = rig.batcher(max_batch=16, devices=(device,)), Small(room=4)
    rig._backbones.append(fake)
    monkeypatch.setattr(devices, "SMALLER_S", 3600.0)
    assert await together(batcher, fake, *range(64)) == list(range(64))
    sizes = [len(batch) for batch in fake.batches]
    assert max(sizes) == 16
    failed = sum(size > 4 for size in sizes)
    fake.batches.clear()
    assert await together(batcher, fake, *range(64)) == list(range(64))
    assert max(map(len, fake.batches)) <= 4, "what fitted is remembered"
    assert failed
    assert batcher.alive()

    batcher.queues.limit(fake.ref(), 4, -1.0)  # the while is over
    fake.batches.clear()
    fake.room = 16
    assert await together(batcher, fake, *range(64)) == list(range(64))
    assert max(map(len, fake.batches)) > 4, "and forgotten"


async def test_one_image_that_does_not_fit_is_told_to_come_back(rig: Rig) -> None:
    batcher, fake = rig.batcher(), Small(room=0)
    [outcome] = await ask(batcher, fake, 1)
    assert isinstance(outcome, ResourceExhausted)
    assert outcome.retry_after_s
    assert "memory" in outcome.message
    fake.room = 1
    assert await ask(batcher, fake, 2) == [2]


@pytest.mark.parametrize("step", ["launch", "finish"])
async def test_a_failed_forward_leaves_nothing_in_memory(rig: Rig, step: str) -> None:
    """What a forward has computed hangs on the frames of its error; halves of the batch need that memory."""
    import weakref  # noqa: PLC0415

    batcher, fake = rig.batcher(max_batch=2), rig.backbone()
    left: list[weakref.ref[Any]] = []
    alive_at_retry: list[bool] = []
    launch = fake.launch

    def heavy(pixels: Any, ref: Any, device: int = 0) -> Any:
        def fail() -> None:
            activations = np.zeros(1000)
            left.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")

        if len(pixels) == 1:
            alive_at_retry.extend(each() is not None for each in left)
            return launch(pixels, ref, device)
        if step == "launch":
            fail()
        return fail

    fake.launch = heavy  # type: ignore[method-assign]
    assert await together(batcher, fake, 1, 2) == [1, 2]  # type: ignore[arg-type]
    assert left
    assert not any(alive_at_retry)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("step", ["launch", "finish"])
async def test_after_a_lasting_error_nothing_more_is_tried_and_everybody_is_told_to_go_elsewhere(
    rig: Rig, device: str, step: str
) -> None:
    batcher, fake = rig.batcher(max_batch=4, devices=(device,)), rig.backbone()
    fake.broken, fake.error, fake.breaks_at = {13}, RuntimeError(ASSERTED), step
    outcomes = await ask(batcher, fake, 13, 1, 2)
    assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
    await until(batcher.lost)
    launched = len(fake.batches)
    [outcome] = await ask(batcher, fake, 5)
    assert isinstance(outcome, Unavailable)
    assert "CUDA" not in outcome.message
    assert len(fake.batches) == launched
    assert "device-side assert" in batcher.lost()
    assert "device-side assert" in batcher.trouble()


async def test_a_lasting_error_in_other_work_on_the_device_counts_too(rig: Rig) -> None:
    batcher = rig.batcher()

    def asserted() -> None:
        raise RuntimeError(ASSERTED)

    with pytest.raises(Internal):
        await batcher.on_device(0, asserted)
    assert "device-side assert" in batcher.lost()


async def test_a_decode_thread_that_dies_answers_its_image_and_begins_again(rig: Rig) -> None:
    batcher, fake = rig.batcher(decode_threads=1), rig.backbone()
    rig.decode.dies = True
    [outcome] = await ask(batcher, fake, 1)
    assert isinstance(outcome, Internal)
    assert "died" in outcome.message
    rig.decode.dies = False
    assert await ask(batcher, fake, 2) == [2]
    assert batcher.alive()
    await until(lambda: batcher.queues.stalled() == 0)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("step", ["launch", "finish"])
async def test_a_device_thread_that_dies_answers_its_images_and_begins_again(rig: Rig, device: str, step: str) -> None:
    batcher, fake = rig.batcher(max_batch=2, devices=(device,)), rig.backbone()
    fake.broken, fake.error, fake.breaks_at = {13}, SystemExit(), step  # type: ignore[assignment]
    outcomes = await ask(batcher, fake, *range(10, 18))
    assert len(outcomes) == 8
    for value, outcome in zip(range(10, 18), outcomes, strict=True):
        assert outcome == value or isinstance(outcome, Internal)
    assert isinstance(outcomes[3], Internal)
    assert sum(isinstance(outcome, Internal) for outcome in outcomes) <= 4, "two batches at most were in hand"
    assert await ask(batcher, fake, 1, 2, 3) == [1, 2, 3]
    assert batcher.alive()
    await until(lambda: batcher.queues.stalled() == 0)


async def test_an_image_that_was_answered_before_its_thread_died_is_answered_once(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4), rig.backbone()
    launch = fake.launch

    def failing(pixels: Any, ref: Any, device: int = 0) -> Any:
        values = [int(image[0, 0, 0]) for image in pixels]
        if len(values) == 4:
            raise ValueError("halve it")
        if 3 in values:
            raise SystemExit
        return launch(pixels, ref, device)

    fake.launch = failing  # type: ignore[method-assign]
    outcomes = await together(batcher, fake, 1, 2, 3, 4)  # type: ignore[arg-type]
    assert outcomes[:2] == [1, 2]
    assert [type(outcome) for outcome in outcomes[2:]] == [Internal, Internal]


async def test_other_work_that_ends_the_thread_is_answered_and_the_thread_begins_again(rig: Rig) -> None:
    batcher, fake = rig.batcher(), rig.backbone()

    def die() -> None:
        raise SystemExit

    with pytest.raises(Internal, match="died"):
        await batcher.on_device(0, die)
    assert await ask(batcher, fake, 7) == [7]
    assert batcher.devices[0].running()
