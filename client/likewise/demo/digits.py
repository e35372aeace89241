"""scikit-learn's handwritten digits: classes that no backbone here was trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from likewise.demo.extras import need
from likewise.demo.pictures import Picture, png

SIDE = 96  # pixels
PER_CLASS = 80


def digits(*, moved: bool, seed: int) -> list[Picture]:
    """Return 80 pictures of each digit, light on black, 96x96.

    As they come, every digit fills its 8x8 frame. `moved` draws each at its own size (60 to 95 % of the
    frame), place and tilt (up to 10 degrees), as things are in pictures that nobody has tidied.
    """
    data = need("sklearn.datasets").load_digits()
    rng = np.random.default_rng(seed)
    made = []
    for digit in range(10):
        chosen = rng.permutation(np.flatnonzero(data.target == digit))[:PER_CLASS]
        for i in chosen:
            image = Image.fromarray((data.images[i] * (255 / 16)).astype(np.uint8))
            image = _moved(image, rng) if moved else image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            made.append(Picture(f"digit {i}", str(digit), png(image)))
    return made


def _moved(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(SIDE * rng.uniform(0.6, 0.95))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    frame: NDArray[np.uint8] = np.zeros((SIDE, SIDE), np.uint8)
    x, y = rng.integers(0, SIDE - side + 1, 2)
    frame[y : y + side, x : x + side] = np.asarray(image)
    return Image.fromarray(frame)
