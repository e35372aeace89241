"""The bundled backbone: its file, its card, its features."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from likewise_server.backbones import tiny

WEIGHTS = Path(tiny.__file__).parent / "weights/likewise-tiny.safetensors"
CARD = WEIGHTS.with_suffix(".json")
SHARED = Path(os.environ.get("LIKEWISE_SHARED", str(Path(__file__).parents[4] / "shared")))


def load() -> tiny.Tiny:
    network = tiny.build()
    network.load_state_dict(load_file(WEIGHTS), strict=True)
    return network.eval()


def test_the_packaged_file_is_small() -> None:
    assert WEIGHTS.stat().st_size + CARD.stat().st_size <= 4 * 2**20


def test_the_card_names_the_file_it_describes() -> None:
    card = json.loads(CARD.read_text())
    assert card["sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert card["dim"] == tiny.DIM
    assert card["parameters"] == sum(p.numel() for p in tiny.build().parameters())


@torch.inference_mode()
def test_features_are_a_map_and_forward_its_average() -> None:
    network = load()
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    features, pooled = network.features(pixels), network(pixels)
    assert features.shape == (2, tiny.DIM, 8, 8)
    assert pooled.shape == (2, tiny.DIM)
    assert torch.isfinite(pooled).all()
    torch.testing.assert_close(pooled, features.mean((2, 3)))


@torch.inference_mode()
def test_reduced_precision_keeps_the_direction() -> None:
    network = load()
    pixels = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    exact = network(pixels)
    reduced = network.bfloat16()(pixels.bfloat16()).float()
    assert torch.nn.functional.cosine_similarity(exact, reduced).min() > 0.98


@torch.inference_mode()
def embed(network: tiny.Tiny, files: list[Path]) -> NDArray[np.float32]:
    how = tiny.PREPROCESSING
    pixels = []
    for file in files:
        with Image.open(file) as image:
            square = image.convert("RGB").resize((how.crop, how.crop), Image.Resampling.BILINEAR)
        pixels.append((np.asarray(square, np.float32) / 255 - how.mean) / how.std)
    batch = torch.from_numpy(np.stack(pixels).astype(np.float32)).permute(0, 3, 1, 2)
    features: NDArray[np.float32] = torch.nn.functional.normalize(network(batch), dim=1).numpy()
    return features


def five_shot(network: tiny.Tiny, data: Path) -> float:
    """All classes at once, the first 5 pictures of each as examples, the next 10 as queries."""
    classes = sorted(path for path in data.iterdir() if path.is_dir())
    rows = [embed(network, sorted(path.iterdir())[:15]) for path in classes]
    centroids = np.stack([row[:5].mean(0) for row in rows])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    guesses = [(row[5:] @ centroids.T).argmax(1) == label for label, row in enumerate(rows)]
    return float(np.concatenate(guesses).mean())


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no shared data in {SHARED}")
@pytest.mark.parametrize(("data", "margin"), [("monkeys10", 0.15), ("signdigits10", 0.15)])
def test_training_beats_random_weights_by_far_on_unseen_sets(data: str, margin: float) -> None:
    torch.manual_seed(0)
    untrained = tiny.build().eval()
    assert five_shot(load(), SHARED / "data" / data) > five_shot(untrained, SHARED / "data" / data) + margin
