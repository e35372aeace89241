"""What is known of a machine without measuring it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from likewise_server.backbones.precision import native_bf16
from likewise_server.tuning.results import Gpu, Machine


def machine(devices: Sequence[torch.device]) -> Machine:
    """Return processor, cores, GPUs, torch, and the load now, with `devices` as those that compute."""
    gpus = [torch.cuda.get_device_properties(device) for device in devices if device.type == "cuda"]
    return Machine(
        processor=_processor(),
        cores=cores(),
        device=",".join(map(str, devices)),
        native_bf16=native_bf16(devices[0]),
        gpus=[Gpu(gpu.name, round(gpu.total_memory / 2**30, 1)) for gpu in gpus],
        torch=torch.__version__,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    )


def cores() -> int:
    """Return the number of cores that the server counts with."""
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
