"""Where a backbone's weights are, or random ones where there are none: speed does not depend on their values.

python -m embedding.weights NAME DIRECTORY
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from common.processes import BENCHMARKS
from embedding.images import photographs

BUNDLED = "likewise-tiny"
SUFFIXES = (".safetensors", ".pth")


def main() -> None:
    """Save the state dict of a network as torchvision draws it, made numerically sound where that is not."""
    import torch  # noqa: PLC0415  # the process that generates load stays light
    from torch import nn  # noqa: PLC0415
    from torchvision import models  # noqa: PLC0415

    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    module = models.get_model(name, weights=None)
    if any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in module.modules()):
        settle(module)
    torch.save(module.state_dict(), folder / f"{name}.pth")


def settle(module: Any) -> None:
    """Set the batch norms' statistics by photographs, as training does.

    As drawn, the maps of a depthwise network shrink from layer to layer until its features are rounding errors,
    which no compiled form of it could reproduce: the server would rightly stay eager.
    """
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from likewise_server.images import ImageLimits, Preprocessing, guard, pixels_of  # noqa: PLC0415

    guard(ImageLimits())
    how = Preprocessing(256, 224)
    pictures = np.stack([pixels_of(data, how, ImageLimits()) for data in photographs().data[:32]])
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the plain average
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) * 255 for values in (how.mean, how.std))
        module.train()((torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - mean) / std)


def weights_for(name: str, scratch: Path) -> tuple[Path, str]:
    """Return a directory with weights of `name`, and whether they are bundled, the person's own or random."""
    given = os.environ.get("LIKEWISE_WEIGHTS_DIR", "")
    if name == BUNDLED:
        return scratch, "bundled"
    if given and any((Path(given) / f"{name}{suffix}").exists() for suffix in SUFFIXES):
        return Path(given), "LIKEWISE_WEIGHTS_DIR"
    # In a process of its own: no torch, and none of its threads, beside the generator of load.
    subprocess.run([sys.executable, "-m", "embedding.weights", name, str(scratch)], check=True, cwd=BENCHMARKS)
    return scratch, "random"


if __name__ == "__main__":
    main()
