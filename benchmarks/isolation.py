"""Decoding in threads and in processes: images per second side by side, and what a process costs.

    python benchmarks/isolation.py [--rounds N] [--threads N] [--json OUT]

Pictures are those of LIKEWISE_SHARED's imagenet-sample, or where that is not, scikit-image's photographs. Threads and
processes take turns, round by round, over the same pictures; the ratio is the median of the rounds' own, because other
work on the machine changes from one round to the next. On a machine that is busy with others, look at the processor
time for each picture instead: processes get a larger share of the processors than threads do.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import skimage
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from likewise_server.errors import LikewiseError
from likewise_server.images import ImageLimits, Preprocessing, guard
from likewise_server.pipeline.decoders import CpuDecode, Decode
from likewise_server.pipeline.isolation import IsolatedDecode

SHARED = Path(os.environ.get("LIKEWISE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
HOW = Preprocessing(256, 224)
LIMITS = ImageLimits()


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    guard(LIMITS)
    sets = {"small": small(), "large": [enlarged(data) for data in small()[:12]]}
    began = time.perf_counter()
    isolated = IsolatedDecode(LIMITS, "scaled", workers=options.threads, timeout_s=60)
    plain = CpuDecode(LIMITS, "scaled")
    with ThreadPoolExecutor(options.threads, initializer=alone) as pool:
        list(pool.map(lambda data: isolated([data], HOW, ""), sets["small"]))
        started = time.perf_counter() - began
        found: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__, "load": os.getloadavg()[0]},
            "threads": options.threads,
            "start_s": started,
            "worker_mib": [private_mib(pid) for pid in workers()],
            "sets": {name: compared(pool, plain, isolated, data, options.rounds) for name, data in sets.items()},
        }
    isolated.close()
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def compared(
    pool: ThreadPoolExecutor, plain: Decode, isolated: Decode, images: list[bytes], rounds: int
) -> dict[str, Any]:
    """Return images per second of both ways, and the median ratio of the second to the first."""
    rates: dict[str, list[float]] = {"threads": [], "processes": []}
    spent: dict[str, list[float]] = {"threads": [], "processes": []}
    ways = {"threads": plain, "processes": isolated}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began, used = time.perf_counter(), cpu_s()
            done = list(pool.map(lambda data, way=ways[name]: way([data], HOW, "")[0], images))
            rates[name].append(len(images) / (time.perf_counter() - began))
            spent[name].append((cpu_s() - used) * 1e3 / len(images))
            wrong = [each for each in done if isinstance(each, LikewiseError)]
            if wrong:
                raise wrong[0]
    ratios = [b / a for a, b in zip(rates["threads"], rates["processes"], strict=True)]
    return {
        "images": len(images),
        "bytes": statistics.median(map(len, images)),
        "images_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "cpu_ms_per_image": {name: statistics.median(values) for name, values in spent.items()},
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
    }


def small() -> list[bytes]:
    """Return photographs as they are sent."""
    files = sorted((SHARED / "data/imagenet-sample").glob("*.JPEG"))
    if files:
        return [path.read_bytes() for path in files]
    folder = Path(skimage.__file__).parent / "data"
    return [encoded(Image.open(folder / name).convert("RGB")) for name in ("astronaut.png", "coffee.png", "rocket.jpg")]


def enlarged(data: bytes) -> bytes:
    """Return the photograph at twelve megapixels."""
    return encoded(Image.open(io.BytesIO(data)).convert("RGB").resize((4000, 3000)))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def workers() -> Sequence[int]:
    """Return the processes that this one has started."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for each in tasks for pid in each.read_text().split()]


def cpu_s() -> float:
    """Return the processor time that this process and those it has started have taken."""
    ticks = sum(
        sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])) for pid in workers()
    )
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def private_mib(pid: int) -> float:
    """Return the memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def alone() -> None:
    """Leave this thread without a pool under it, as the server's decode threads are."""
    threadpool_limits(1, user_api="openmp")


if __name__ == "__main__":
    main()
