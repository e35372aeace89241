"""Real pictures: the shared sets where they are, and those that come with packages everywhere."""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("LIKEWISE_SHARED", ROOT.parent / "shared"))
needs_shared = pytest.mark.skipif(not (SHARED / "MANIFEST.md").exists(), reason=f"no shared test material at {SHARED}")

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "ihc", "motorcycle_left")


@cache
def photographs() -> dict[str, Image.Image]:
    """The colour photographs in scikit-image's wheel, by name."""
    folder = Path(skimage.__file__).parent / "data"
    found = {path.stem: path for path in folder.iterdir() if path.suffix in (".png", ".jpg")}
    made: dict[str, Image.Image] = {}
    for name in PHOTOGRAPHS:
        with Image.open(found[name]) as image:
            made[name] = image.convert("RGB")
    return made


def jpeg(image: Image.Image, quality: int = 90, **options: object) -> bytes:
    """Encode as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def png(image: Image.Image, **options: object) -> bytes:
    """Encode as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def photograph_jpegs(side: int = 320) -> list[bytes]:
    """Each photograph at two crops, as JPEG of at most `side` pixels."""
    made: list[bytes] = []
    for image in photographs().values():
        width, height = image.size
        for box in ((0, 0, width, height), (width // 4, height // 4, width, height)):
            part = image.crop(box)
            part.thumbnail((side, side))
            made.append(jpeg(part))
    return made


def digit_images(per_class: int, classes: int = 10) -> tuple[list[bytes], list[str]]:
    """Handwritten digits of scikit-learn as 64 px pictures, and their labels."""
    digits = load_digits()
    images: list[bytes] = []
    labels: list[str] = []
    for label in range(classes):
        for row in np.flatnonzero(digits.target == label)[:per_class]:
            small = Image.fromarray((digits.images[row] * (255 / 16)).astype(np.uint8))
            images.append(png(small.resize((64, 64), Image.Resampling.BICUBIC)))
            labels.append(str(label))
    return images, labels
