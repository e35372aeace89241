"""What people write first: Pillow, torchvision's preset, the eager network in fp32. A worker, and LitServe's model.

python -m embedding.plain NAME WEIGHTS_DIR
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from common.answering import Answers
from embedding.images import photographs, tagged

TINY = "likewise-tiny"
CLASSIFIERS = ("fc", "classifier", "heads", "head")  # an embedding is what comes before it


def main() -> None:
    """Answer requests for loops."""
    answers = Answers()
    loop = PlainLoop(sys.argv[1], Path(sys.argv[2]))
    answers.serve({"loop": loop.run}, {"threads": torch.get_num_threads()})


class PlainLoop:
    """One thread that opens, transforms and runs, batch after batch."""

    def __init__(self, name: str, weights: Path) -> None:
        self._module, self._preset = network(name, weights)
        self._images = photographs().data

    def run(self, images: int, batch: int) -> dict[str, Any]:
        """Embed so many images and return the rate."""
        started = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, images, batch):
                numbers = range(first, min(first + batch, images))
                self._module(torch.stack([self._open(number) for number in numbers]))
        return {"images": images, "seconds": time.perf_counter() - started}

    def _open(self, number: int) -> Tensor:
        data = tagged(self._images[number % len(self._images)])
        pixels: Tensor = self._preset(Image.open(io.BytesIO(data)).convert("RGB"))
        return pixels


def network(name: str, weights: Path) -> tuple[nn.Module, Any]:
    """Return the network without its classifier, in eval mode, and torchvision's preset for it."""
    if name == TINY:
        from likewise_server.backbones import tiny_loader  # noqa: PLC0415  # the one that torchvision does not have

        loaded = tiny_loader.load_network()
        how = loaded.preprocessing
        entry = next(iter(models.get_model_weights("resnet18")))
        return loaded.module.eval(), entry.transforms(resize_size=how.resize, crop_size=how.crop)
    module = models.get_model(name, weights=None)
    module.load_state_dict(read(weights, name), strict=False)  # files without a classifier serve as well
    for attribute in CLASSIFIERS:
        if hasattr(module, attribute):
            setattr(module, attribute, nn.Identity())
    return module.eval(), models.get_model_weights(name).DEFAULT.transforms()


def read(weights: Path, name: str) -> dict[str, Tensor]:
    """Return the state dict of `name` in a directory of weights."""
    path = weights / f"{name}.safetensors"
    if path.exists():
        from safetensors.torch import load_file  # noqa: PLC0415  # only where such a file is used

        return load_file(path)
    state: dict[str, Tensor] = torch.load(weights / f"{name}.pth", weights_only=True)
    return state


if __name__ == "__main__":
    main()
