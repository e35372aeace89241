from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@pytest.fixture(scope="session", autouse=True)
def _one_blas_thread() -> Iterator[None]:
    # Small matrices on a busy machine: BLAS threads would wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        yield


@pytest.fixture(scope="session")
def digits() -> tuple[NDArray[np.float32], list[str], list[str]]:
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn, shuffled."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return X[order].astype(np.float32), [str(v) for v in y[order]], [f"{i:05d}" for i in range(len(y))]


@pytest.fixture(scope="session")
def photos() -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Pooled mobilenet_v2 features (1280) of 10 photographs of each of 10 monkey species."""
    root = Path(os.environ.get("LIKEWISE_SHARED", Path(__file__).parents[4] / "shared"))
    weights, folder = root / "weights" / "mobilenet_v2.pth", root / "data" / "monkeys10"
    if not (weights.is_file() and folder.is_dir()):
        pytest.skip(f"no {weights} or {folder}: set LIKEWISE_SHARED")
    import torch  # noqa: PLC0415
    import torchvision  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    model = torchvision.models.mobilenet_v2()
    model.classifier = torch.nn.Identity()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    model.eval()
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms(resize_size=256)
    files = [f for species in sorted(folder.iterdir()) for f in sorted(species.iterdir())[:10]]
    features = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for file in files:
            with Image.open(file) as image:
                features.append(model(transform(image.convert("RGB"))[None]).numpy())
    torch.set_num_threads(threads)
    return np.concatenate(features), [f.parent.name for f in files], [f"{f.parent.name}/{f.name}" for f in files]
