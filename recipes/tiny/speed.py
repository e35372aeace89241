"""Compare likewise-tiny's speed with torchvision's mobilenet_v3_small at 224 px, in one run.

python -m recipes.tiny.speed [--compile]

bfloat16, channels last, inference mode; the two take turns, and the median of the turns counts, so that
other work on the machine falls on both alike.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from likewise_server.backbones import tiny


def prepare(network: nn.Module, side: int, batch: int, *, compiled: bool) -> Callable[[], object]:
    """Return a call that embeds a batch of made-up pictures."""
    network = network.eval().bfloat16().to(memory_format=torch.channels_last)
    pixels: Tensor = torch.randn(batch, 3, side, side).bfloat16().to(memory_format=torch.channels_last)
    run: Any = torch.compile(network, options={"freezing": True}) if compiled else network
    return lambda: run(pixels)


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--crop", type=int, default=tiny.PREPROCESSING.crop)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peer = torchvision.models.mobilenet_v3_small()
    peer.classifier = nn.Identity()
    runs = {
        "likewise-tiny": prepare(tiny.build(), args.crop, args.batch, compiled=args.compile),
        "mobilenet_v3_small": prepare(peer, 224, args.batch, compiled=args.compile),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(args.turns + 3):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - started)
    rates = {name: args.batch / float(np.median(times)) for name, times in seconds.items()}
    print("  ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items()))
    print(f"ratio {rates['likewise-tiny'] / rates['mobilenet_v3_small']:.2f}")


if __name__ == "__main__":
    main()
