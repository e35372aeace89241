"""What tuning finds out, as plain values: what `--json` prints, and what the tables show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Execution: TypeAlias = Literal["eager", "compiled"]
Value: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured on. `native_bf16` is of the device that computes; `load` is what others kept running.

    `load`: processes that ran or waited to, on average over the minute before.
    """

    processor: str
    cores: int
    device: str
    native_bf16: bool
    gpus: list[Gpu]
    torch: str
    load: float


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """Bytes to cropped pixels: images/s of all `threads` together."""

    decoding: str
    threads: int
    images_per_s: float


@dataclass(frozen=True, slots=True)
class ForwardRate:
    """Pixels to vectors: images/s in batches of `batch` on one device."""

    precision: str
    execution: Execution
    batch: int
    images_per_s: float


@dataclass(frozen=True, slots=True)
class BothRate:
    """Bytes to vectors through the server's pipeline: images/s."""

    decode_threads: int
    max_batch: int
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one image alone: on one decode thread, then in a forward of its own."""

    decode_ms: float
    forward_ms: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What limits images/s.

    Where decoding and forwards share the cores, the shares are of an image's core time and sum to 1. Where a GPU
    computes, each is the part of the time that its stage is busy.
    """

    by: Literal["decode", "forward"]
    decode_share: float
    forward_share: float
    shared_cores: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting, its value, and one sentence on why."""

    name: str
    value: Value
    why: str


@dataclass(slots=True)
class Measured:
    """One backbone's tables, and what follows from them."""

    backbone: str
    decode: list[DecodeRate]
    forward: list[ForwardRate]
    both: list[BothRate]
    latency: Latency
    bound: Bound
    images_per_s: float  # with the settings chosen
    settings: list[Choice]
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """All of it."""

    machine: Machine
    pictures: str
    backbones: list[Measured]
    settings: list[Choice]  # that suit all the backbones together
