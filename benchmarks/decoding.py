"""From bytes to the network's crop: Pillow's way and the server's, and what decoding at a fraction costs and saves.

    python benchmarks/decoding.py [--rounds N] [--large N] [--json OUT]

Small pictures are those of LIKEWISE_SHARED's imagenet-sample, large ones the largest photographs there, enlarged by
Lanczos, with noise of a sensor's kind added, as JPEG of quality 90 in 4:2:0. Where that folder is not, both are made
of scikit-image's photographs, and the networks are the bundled one alone. Times are medians over interleaved rounds.
A cosine is the least over the pictures between vectors of scaled and of full decoding; `rounding` is the same between
full decoding and itself with a third of the values one level up and a third one level down, as a yardstick.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from likewise_server.backbones import registry
from likewise_server.backbones.backbone import Backbone
from likewise_server.images import SPARE, Decoding, ImageLimits, Preprocessing, decode, guard, pixels_of, preprocess
from likewise_server.resizing import resized_crop, window

SHARED = Path(os.environ.get("LIKEWISE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
NETWORKS = ("mobilenet_v2", "squeezenet1_1", "timm/mobileone_s0")
PACKAGED = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "ihc")
HOW = Preprocessing(256, 224)
LIMITS = ImageLimits()
SIZES = {"2 MP": (1632, 1224), "8 MP": (3264, 2448), "24 MP": (6000, 4000)}
FACTORS = (1, 1.5, 2, 3, 3.5, 4)
NOISE = 5  # levels, standard deviation

Pixels = NDArray[np.uint8]


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large", type=int, default=12, help="large pictures of each size")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    guard(LIMITS)
    if not (SHARED / "MANIFEST.md").exists():
        print(f"no {SHARED}: pictures are scikit-image's, the network is likewise-tiny", file=sys.stderr)
    load = os.getloadavg()[0]
    large = largest(options.large)
    networks = loaded()
    found = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__, "load": load},
        "small": small(options.rounds),
        "large": [sized(name, size, large, options.rounds, networks) for name, size in SIZES.items()],
        "factors": [by_factor(factor, large, networks) for factor in FACTORS],
    }
    report(found, list(networks))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def small(rounds: int) -> dict[str, Any]:
    """Return ms per image of each way, with one thread and two."""
    files = [path.read_bytes() for path in sorted((SHARED / "data/imagenet-sample").glob("*.JPEG"))]
    files = files or [encoded(image.resize((500, round(500 * image.height / image.width)))) for image in packaged()]
    ways: dict[str, Callable[[bytes], object]] = {
        "pillow": lambda data: preprocess(decode(data, LIMITS), HOW),
        "server": lambda data: pixels_of(data, HOW, LIMITS),
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for threads in (1, 2):
            with ThreadPoolExecutor(threads, initializer=alone) as pool:
                list(pool.map(ways["server"], files[:8]))
                for name, way in ways.items():
                    began, started = time.process_time(), time.perf_counter()
                    list(pool.map(way, files))
                    taken, used = time.perf_counter() - started, time.process_time() - began
                    times.setdefault(f"{name}_{threads}", []).append(taken * 1e3 / len(files))
                    times.setdefault(f"{name}_cpu_{threads}", []).append(used * 1e3 / len(files))
    sizes = [Image.open(io.BytesIO(data)).size for data in files]
    apart = [np.abs(pixels_of(d, HOW, LIMITS, "full").astype(int) - preprocess(decode(d, LIMITS), HOW)) for d in files]
    return {
        "images": len(files),
        "bytes": statistics.median(map(len, files)),
        "pixels": statistics.median(w * h for w, h in sizes),
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "largest_difference": max(int(one.max()) for one in apart),
        "mean_difference": float(np.mean([one.mean() for one in apart])),
    }


def sized(
    name: str, size: tuple[int, int], images: list[Image.Image], rounds: int, networks: dict[str, Backbone]
) -> dict[str, Any]:
    """Return ms per image of both modes and of Pillow for pictures of one size, and the cosines between the modes."""
    files = [enlarged(image, size, seed) for seed, image in enumerate(images)]
    ways: dict[str, Callable[[bytes], object]] = {
        "pillow": lambda data: preprocess(decode(data, LIMITS), HOW),
        "full": lambda data: pixels_of(data, HOW, LIMITS, "full"),
        "scaled": lambda data: pixels_of(data, HOW, LIMITS, "scaled"),
    }
    times: dict[str, list[float]] = {key: [] for key in ways}
    with ThreadPoolExecutor(1, initializer=alone) as pool:
        for _ in range(max(1, rounds // 3)):
            for data in files:
                for key, way in ways.items():
                    started = time.perf_counter()
                    pool.submit(way, data).result()
                    times[key].append((time.perf_counter() - started) * 1e3)
    modes: tuple[Decoding, ...] = ("full", "scaled")
    full, scaled = ([pixels_of(data, HOW, LIMITS, mode) for data in files] for mode in modes)
    ms = {key: statistics.median(values) for key, values in times.items()}
    return {"size": name, "images": len(files), "ms": ms, "cosines": cosines(full, scaled, networks)}


def by_factor(factor: float, images: list[Image.Image], networks: dict[str, Backbone]) -> dict[str, Any]:
    """Return the cosines of decoding at 1/2 what is then exactly `factor` times as large as the resize."""
    full: list[Pixels] = []
    half: list[Pixels] = []
    for seed, image in enumerate(images):
        short = math.ceil(factor * HOW.resize * 2)
        scale = short / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        data = enlarged(image, size, seed)
        for crops, divisor in ((full, 1), (half, 2)):
            least = (-(-size[1] // divisor), -(-size[0] // divisor)) if divisor > 1 else (0, 0)
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
            square = resized_crop(torch.from_numpy(pixels), size, window(size, HOW), HOW)
            crops.append(np.ascontiguousarray(square.numpy()))
    return {"factor": factor, "cosines": cosines(full, half, networks)}


def cosines(a: list[Pixels], b: list[Pixels], networks: dict[str, Backbone]) -> dict[str, dict[str, float]]:
    """Return, for each network, least and median cosine of crops pairwise, and the least under rounding."""
    rng = np.random.default_rng(0)
    rounded = [np.clip(one + rng.integers(-1, 2, one.shape), 0, 255).astype(np.uint8) for one in a]
    found = {}
    for name, backbone in networks.items():
        first = vectors(backbone, a)
        values = (first * vectors(backbone, b)).sum(axis=1)
        yardstick = (first * vectors(backbone, rounded)).sum(axis=1)
        # A picture whose vector depends on how its pixels are rounded, a blank one, says nothing of decoding.
        telling = values[yardstick >= 0.99]
        found[name] = {
            "least": float(values.min()),
            "least_telling": float(telling.min()) if telling.size else math.nan,
            "median": float(np.median(values)),
            "rounding": float(yardstick.min()),
        }
    return found


def vectors(backbone: Backbone, crops: Sequence[Pixels]) -> NDArray[np.float32]:
    """Return unit vectors."""
    made = np.concatenate(
        [backbone.forward(np.stack(crops[i : i + 8]), backbone.ref()) for i in range(0, len(crops), 8)]
    )
    unit: NDArray[np.float32] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def loaded() -> dict[str, Backbone]:
    """Return the networks with real weights."""
    weights = SHARED / "weights"
    names = NETWORKS if weights.exists() else ("likewise-tiny",)
    cpu = torch.device("cpu")
    return {name: registry.load(name, weights_dir=weights, device=cpu, precision="fp32") for name in names}


def alone() -> None:
    """Leave this thread without a pool under it, as the server's decode threads are."""
    threadpool_limits(1, user_api="openmp")


def packaged() -> list[Image.Image]:
    """Return scikit-image's photographs."""
    files = sorted((Path(skimage.__file__).parent / "data").glob("*.*"))
    return [Image.open(path).convert("RGB") for path in files if path.stem in PACKAGED]


def largest(count: int) -> list[Image.Image]:
    """Return the `count` largest photographs there are."""
    found = []
    for folder in ("caltech101-background/background", "imagenet-sample", "odd-files/jpeg_other", "dtd10/cracked"):
        for path in (SHARED / "data" / folder).glob("*.*"):
            if path.suffix.lower() in (".jpg", ".jpeg"):
                with Image.open(path) as image:
                    if image.mode == "RGB" and max(image.size) <= 2 * min(image.size):
                        found.append((min(image.size), path))
    return [Image.open(path).convert("RGB") for _, path in sorted(found, reverse=True)[:count]] or packaged()[:count]


def enlarged(image: Image.Image, size: tuple[int, int], seed: int) -> bytes:
    """Return a JPEG of `size`, cut to its ratio, with noise."""
    scale = max(size[0] / image.width, size[1] / image.height)
    box = (0, 0, size[0] / scale, size[1] / scale)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32) * NOISE
    return encoded(Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)))


def encoded(image: Image.Image) -> bytes:
    """Return `image` as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()


def report(found: dict[str, Any], networks: list[str]) -> None:
    """Print what was found."""
    machine, rows = found["machine"], found["small"]
    print(f"{machine['processor']}, {machine['cores']} cores, load before {machine['load']:.1f}")
    print(
        f"\n{rows['images']} JPEGs, median {rows['pixels'] / 1e6:.2f} MP and {rows['bytes'] / 1e3:.0f} kB; ms per image"
    )
    print(f"{'':10}{'1 thread':>10}{'its CPU':>10}{'2 threads':>11}{'their CPU':>11}")
    for name in ("pillow", "server"):
        cost = [rows["ms"][f"{name}_{key}"] for key in ("1", "cpu_1", "2", "cpu_2")]
        print(f"{name:10}{cost[0]:10.2f}{cost[1]:10.2f}{cost[2]:11.2f}{cost[3]:11.2f}")
    print(f"the crops differ by {rows['largest_difference']} at most, {rows['mean_difference']:.4f} in the mean")
    print(
        "\nms per image, one thread; cosine of scaled to full decoding: least, (blank ones left out), median, rounding"
    )
    print(f"{'':8}{'pillow':>8}{'full':>8}{'scaled':>8}" + "".join(f"{name:>38}" for name in networks))
    for row in found["large"]:
        ms = "".join(f"{row['ms'][key]:8.1f}" for key in ("pillow", "full", "scaled"))
        print(f"{row['size']:8}{ms}" + cells(row["cosines"]))
    print(f"\nthe same by how many times `resize` the short side of the fraction is (the server's: {SPARE})")
    for row in found["factors"]:
        print(f"{row['factor']:<8}{'':24}" + cells(row["cosines"]))


def cells(values: dict[str, dict[str, float]]) -> str:
    """Format one row's cosines."""
    keys = ("least", "least_telling", "median", "rounding")
    return "".join(f"{'':6}" + "".join(f"{one[key]:8.5f}" for key in keys) for one in values.values())


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
