"""Images per second: a plain loop, the server's own ceiling, and the server over loopback, in one run.

    python benchmarks/embed.py [--backbone NAME ...] [--images N] [--json OUT]

The plain loop is what people write first: Pillow, the torchvision preset, batch 1, eager fp32. The
server runs in a process of its own with the client on the same cores. Real photographs: those of
LIKEWISE_SHARED where it is, else crops of those in scikit-image's wheel. Weights are random where
LIKEWISE_WEIGHTS_DIR has none: speed does not depend on their values, but --precision auto may.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from PIL import Image
from torchvision import models

from likewise import AsyncClient
from likewise_server.backbones import registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.images import ImageLimits, decode, guard, preprocess

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LIKEWISE_SHARED", ROOT.parent / "shared"))
DEFAULT = ["likewise-tiny", "mobilenet_v3_small", "resnet50"]
ROUNDS = 3


def main() -> None:
    """Measure each backbone, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images = photographs(options.images)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.backbone or DEFAULT:
            print(f"measuring {name} …", file=sys.stderr)
            rows.append(measure(name, images, Path(scratch), options.precision))
    machine = {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__}
    report(rows)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "images": len(images), "rows": rows}, indent=2) + "\n")


def photographs(count: int) -> list[bytes]:
    """Return `count` JPEGs, repeated if there are fewer."""
    files = sorted((SHARED / "data/imagenet-sample").glob("*.JPEG"))
    if files:
        found = [path.read_bytes() for path in files]
    else:
        found = []
        for path in sorted((Path(skimage.__file__).parent / "data").glob("*.*")):
            if path.stem in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "ihc"):
                with Image.open(path) as image:
                    rgb = image.convert("RGB")
                rgb.thumbnail((500, 500))
                buffer = io.BytesIO()
                rgb.save(buffer, "JPEG", quality=90)
                found.append(buffer.getvalue())
    return [found[i % len(found)] for i in range(count)]


def measure(name: str, images: list[bytes], scratch: Path, precision: str) -> dict[str, Any]:
    """Return the rates of one backbone, the median of ROUNDS rounds each, interleaved."""
    weights = weights_for(name, scratch)
    loop = plain_loop(name, weights)
    few = images[: max(16, len(images) // 8)]  # the loop is slow, and its rate does not depend on the number
    ceiling = in_process(name, weights, precision)
    rates: dict[str, list[float]] = {"loop": [], "ceiling": [], "bulk": [], "clients_8": [], "clients_1": []}
    with Server(name, weights, precision) as address:
        asyncio.run(bulk(address, images[:64]))  # warm
        loop(few[:4])
        ceiling(images[:32])
        for _ in range(ROUNDS):
            rates["loop"].append(timed(lambda: loop(few), len(few)))
            rates["ceiling"].append(timed(lambda: ceiling(images), len(images)))
            rates["bulk"].append(timed(lambda: asyncio.run(bulk(address, images)), len(images)))
            rates["clients_8"].append(timed(lambda: asyncio.run(clients(address, images, 8)), len(images)))
            single = images[: len(images) // 4]
            rates["clients_1"].append(timed(lambda s=single: asyncio.run(clients(address, s, 1)), len(single)))  # type: ignore[misc]
    row: dict[str, Any] = {"backbone": name, **{key: statistics.median(values) for key, values in rates.items()}}
    row["bulk_over_loop"] = row["bulk"] / row["loop"]
    row["bulk_over_ceiling"] = row["bulk"] / row["ceiling"]
    return row


def weights_for(name: str, scratch: Path) -> Path:
    """Return a directory with weights of `name`: the user's, or random ones."""
    given = os.environ.get("LIKEWISE_WEIGHTS_DIR", "")
    if given and any((Path(given) / f"{name}{suffix}").exists() for suffix in (".pth", ".safetensors")):
        return Path(given)
    if name != "likewise-tiny" and not (scratch / f"{name}.pth").exists():
        torch.manual_seed(0)
        torch.save(models.get_model(name, weights=None).state_dict(), scratch / f"{name}.pth")
    return scratch


def plain_loop(name: str, weights: Path) -> Callable[[list[bytes]], None]:
    """Return the loop people write first."""
    if name == "likewise-tiny":
        backbone = registry.load(name, weights_dir=None, device=torch.device("cpu"), precision="fp32")
        module = backbone.network.module.to(memory_format=torch.contiguous_format)
        how = backbone.preprocessing
        entry = next(iter(models.get_model_weights("resnet18")))
        preset = entry.transforms(resize_size=how.resize, crop_size=how.crop)
    else:
        module = models.get_model(name, weights=None)
        state = torch.load(weights / f"{name}.pth", weights_only=True)
        module.load_state_dict(state, strict=False)
        preset = models.get_model_weights(name).DEFAULT.transforms()
    module.eval()

    def run(images: list[bytes]) -> None:
        with torch.inference_mode():
            for data in images:
                module(preset(Image.open(io.BytesIO(data)).convert("RGB"))[None])

    return run


def in_process(name: str, weights: Path, precision: str) -> Callable[[list[bytes]], None]:
    """Return the ceiling: decode and preprocess in threads, forward in full batches, no server, no queue."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # beside its only use

    limits = ImageLimits()
    guard(limits)
    backbone: Backbone = registry.load(name, weights_dir=weights, device=torch.device("cpu"), precision=precision)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def one(data: bytes) -> Any:
        return preprocess(decode(data, limits), backbone.preprocessing)

    def run(images: list[bytes]) -> None:
        ready = pool.map(one, images)
        batch = []
        for pixels in ready:
            batch.append(pixels)
            if len(batch) == 32:
                backbone.forward(np.stack(batch), backbone.ref())
                batch = []
        if batch:
            backbone.forward(np.stack(batch), backbone.ref())

    return run


class Server:
    """`likewise serve` in a process of its own."""

    def __init__(self, name: str, weights: Path, precision: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "likewise.cli", "serve", "--data", self._folder.name, "--port", "0"]
        command += ["--json", "--backbone", name, "--weights-dir", str(weights), "--precision", precision]
        command += ["--log-level", "warning"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        if self._process.stdout is None:
            raise RuntimeError("the server has no stdout")
        return f"127.0.0.1:{json.loads(self._process.stdout.readline())['port']}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


async def bulk(address: str, images: list[bytes]) -> None:
    """Embed all through the client library, as an indexing job would."""
    async with AsyncClient(address) as lw:
        result = await lw.embed(images, progress=False)
        if result.errors:
            raise RuntimeError(f"{len(result.errors)} images failed")


async def clients(address: str, images: list[bytes], count: int) -> None:
    """Embed one image a call from `count` closed-loop callers."""
    async with AsyncClient(address) as lw:
        queue = iter(images)

        async def caller() -> None:
            for data in queue:
                await lw.embed([data], progress=False)

        await asyncio.gather(*(caller() for _ in range(count)))


def timed(work: Callable[[], object], images: int) -> float:
    """Return images per second."""
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def report(rows: list[dict[str, Any]]) -> None:
    """Print rates and ratios."""
    print(f"{processor()}, {os.cpu_count()} cores; images/s, median of {ROUNDS}")
    columns = ("loop", "ceiling", "bulk", "clients_8", "clients_1")
    print(f"{'backbone':22}" + "".join(f"{c:>12}" for c in columns) + f"{'bulk/loop':>12}{'bulk/ceiling':>14}")
    for row in rows:
        cells = "".join(f"{row[c]:12.1f}" for c in columns)
        print(f"{row['backbone']:22}{cells}{row['bulk_over_loop']:11.2f}x{row['bulk_over_ceiling']:14.2f}")


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
