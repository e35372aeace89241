"""Measure likewise-tiny, its teachers, the same network untrained, and what colours and pixels alone can do.

python -m recipes.tiny.evaluate --json figures.json

Nearest class centroid by cosine on L2-normalised pooled features, 5 classes an episode, 15 queries a class;
mean and 95 % t-interval over the episodes. Every network sees the same episodes. Beside it precision@10: of the ten
pictures nearest to each one, by cosine in its set, how many are of its class; mean and interval over the pictures.
"""

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from recipes.tiny.teachers import MEAN, STD, load_teacher, standardise
from safetensors.torch import load_file
from torch import Tensor, nn

from likewise_server.backbones import tiny
from likewise_training.fewshot import few_shot

UNSEEN: Final = ("monkeys10", "signdigits10", "dtd10", "omniglot40")
"""Sets of which, and of whose sources, nothing was trained on."""
SEEN: Final = (
    "caltech101",
    "imagenette224",
    "pacs-photo",
    "pacs-art_painting",
    "pacs-cartoon",
    "pacs-sketch",
)
"""Sets of whose sources other pictures were trained on."""
NEAREST: Final = 10
PACKAGED: Final = Path(tiny.__file__).parent / "weights/likewise-tiny.safetensors"


@dataclass(frozen=True)
class Network:
    """Standardised pixels (n, 3, crop, crop) to (n, dim), and the sizes they are made at."""

    pool: Callable[[Tensor], Tensor]
    resize: int
    crop: int


def student(weights: Path | None, resize: int, crop: int, seed: int = 0) -> Network:
    """Return likewise-tiny with the weights of a file, or random ones."""
    torch.manual_seed(seed)
    network = tiny.build()
    if weights is not None:
        network.load_state_dict(load_file(weights))
    return Network(network.eval().to(memory_format=torch.channels_last), resize, crop)


def teacher(name: str, weights: Path) -> Network:
    """Return a teacher as it is served: 224 of 256 px."""
    features: nn.Module = load_teacher(name, weights).to(memory_format=torch.channels_last)
    return Network(lambda x: features(x).mean((2, 3)), 256, 224)


def colours(x: Tensor) -> Tensor:
    """Return the roots of a histogram of 4 x 4 x 4 colours, (n, 64), whose cosine is Bhattacharyya's coefficient."""
    scale, shift = (torch.tensor(each).view(3, 1, 1) for each in (STD, MEAN))
    levels = ((x * scale + shift) * 4).long().clamp(0, 3).flatten(2)  # (n, 3, pixels)
    bins = levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]
    return torch.stack([torch.bincount(each, minlength=64) for each in bins]).float().sqrt()


def thumbnails(x: Tensor) -> Tensor:
    """Return the pixels of 16 x 16 thumbnails less their mean, (n, 768)."""
    small = nn.functional.adaptive_avg_pool2d(x, 16).flatten(1)
    return small - small.mean(1, keepdim=True)


def precision(features: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return precision@10 by class in percent, and the half-width of its 95 % interval over the pictures."""
    cosines = features @ features.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST]
    shares = 100 * (labels[nearest] == labels[:, None]).mean(1)
    return float(shares.mean()), float(1.96 * shares.std(ddof=1) / len(shares) ** 0.5)


def read(path: Path, resize: int, crop: int) -> NDArray[np.uint8]:
    """Decode, resize the short side, crop the centre: uint8 (crop, crop, 3)."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = resize / min(image.size)
    width, height = (max(resize, round(side * scale)) for side in image.size)
    left, top = (width - crop) // 2, (height - crop) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@torch.inference_mode()
def embed(network: Network, files: list[Path], batch: int = 32) -> NDArray[np.float32]:
    """Return the files' L2-normalised pooled features, float32 (n, dim)."""
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(files), batch):
            part = files[start : start + batch]
            pixels = np.stack(list(pool.map(lambda f: read(f, network.resize, network.crop), part)))
            x = standardise(torch.from_numpy(pixels)).contiguous(memory_format=torch.channels_last)
            rows.append(nn.functional.normalize(network.pool(x).float(), dim=1))
    return torch.cat(rows).numpy()


def main(argv: list[str] | None = None) -> None:
    """Print a table, and write it as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("LIKEWISE_SHARED", "../shared")))
    parser.add_argument("--weights", type=Path, default=PACKAGED, help="the student's safetensors")
    parser.add_argument("--resize", type=int, default=tiny.PREPROCESSING.resize)
    parser.add_argument("--crop", type=int, default=tiny.PREPROCESSING.crop)
    parser.add_argument("--networks", default="student,mobilenet_v2,mobileone_s0,random,colours,thumbnails")
    parser.add_argument("--sets", default=",".join(UNSEEN + SEEN))
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in args.networks.split(","):
        if name in {"student", "random"}:
            network = student(args.weights if name == "student" else None, args.resize, args.crop)
        elif name in {"colours", "thumbnails"}:
            network = Network(colours if name == "colours" else thumbnails, args.resize, args.crop)
        else:
            network = teacher(name, args.shared / "weights")
        for data in args.sets.split(","):
            files = sorted(path for path in (args.shared / "data" / data).glob("*/*") if path.is_file())
            labels = np.unique([path.parent.name for path in files], return_inverse=True)[1]
            features = embed(network, files)
            found = precision(features, labels)
            one, five = (few_shot(features, labels, shots, args.episodes) for shots in (1, 5))
            figures.setdefault(name, {})[data] = {
                "1-shot": [round(value, 1) for value in one],
                "5-shot": [round(value, 1) for value in five],
                "precision@10": [round(value, 1) for value in found],
            }
            shown = f"1-shot {one[0]:5.1f} ± {one[1]:.1f}   5-shot {five[0]:5.1f} ± {five[1]:.1f}"
            shown += f"   precision@10 {found[0]:5.1f} ± {found[1]:.1f}"
            print(f"{name:14} {data:18} {shown}", flush=True)
    if args.json:
        written = {"episodes": args.episodes, "seed": 0, "figures": figures}
        args.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
