"""Pictures in, training views out: seeded crops, recolourings and blends of the corpus, and drawn pictures.

A view is uint8 (SIDE, SIDE, 3). The teachers see the very view that the student sees (Beyer et al.,
"Knowledge distillation: A good teacher is patient and consistent", 2021), so a view may be as wild as one
likes: its target is whatever the teachers say of it.
"""

import csv
import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

SIDE = 128
View = NDArray[np.uint8]


class Corpus:
    """The pictures of a corpus zip in the order of its index.csv (columns file, set)."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        with self._zip.open("index.csv") as stream:
            rows = list(csv.DictReader(io.TextIOWrapper(stream, "utf-8")))
        self.files = [row["file"] for row in rows]
        self.sets = [row["set"] for row in rows]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.files)

    def picture(self, index: int) -> Image.Image:
        """Decode one picture to RGB."""
        with Image.open(io.BytesIO(self._zip.read(self.files[index]))) as image:
            return image.convert("RGB")

    def views(self, index: int) -> int:
        """Say how many views a picture is worth: CIFAR's 32 px hold less to see."""
        return 2 if self.sets[index] == "cifar10" else 5


def crop(image: Image.Image, rng: np.random.Generator, least: float = 0.25) -> Image.Image:
    """Cut a random box of `least` to 1 of the area, sides within 3:4 to 4:3, and flip half of them."""
    width, height = image.size
    area = width * height * rng.uniform(least, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w = min(width, round(math.sqrt(area * ratio)))
    h = min(height, round(math.sqrt(area / ratio)))
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    box = (float(left), float(top), float(left + w), float(top + h))
    out = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    return ImageOps.mirror(out) if rng.random() < 0.5 else out


def recolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Jitter brightness, contrast and colour; now and then grey, invert, trace or binarise."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.5:
            image = enhance(image).enhance(rng.uniform(0.6, 1.4))
    kind = rng.random()
    if kind < 0.08:
        return ImageOps.grayscale(image).convert("RGB")
    if kind < 0.12:
        return ImageOps.invert(image)
    if kind < 0.20:  # dark lines on light paper
        lines = ImageOps.grayscale(image).filter(ImageFilter.SMOOTH).filter(ImageFilter.CONTOUR)
        return ImageOps.autocontrast(lines, cutoff=2).convert("RGB")
    if kind < 0.24:
        grey = ImageOps.grayscale(image)
        level = float(np.median(np.asarray(grey)))
        return grey.point(lambda value: 255 if value > level else 0).convert("RGB")
    if kind < 0.32:
        return image.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, fillcolor=(124, 116, 104))
    return image


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def strokes(rng: np.random.Generator) -> Image.Image:
    """Draw one to six pen strokes (random quadratic curves), mostly dark on white."""
    plain = rng.random() < 0.7
    paper, ink = ((255, 255, 255), (0, 0, 0)) if plain else (_colour(rng), _colour(rng))
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE), paper)
    draw = ImageDraw.Draw(image)
    width = int(rng.integers(3, 18))
    low, high = sorted(rng.uniform(0.05, 0.95, 2)) if rng.random() < 0.3 else (0.1, 0.9)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(1, 7)):
        points = rng.uniform(low, high, (3, 2)) * 2 * SIDE
        curve = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
        draw.line([(float(x), float(y)) for x, y in curve], fill=ink, width=width, joint="curve")
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def pattern(rng: np.random.Generator) -> Image.Image:
    """Make a texture: noise of a random spectrum, mixed gratings, or dead leaves (overlapping shapes)."""
    kind = rng.random()
    if kind < 0.35:
        image = Image.new("RGB", (2 * SIDE, 2 * SIDE), _colour(rng))
        draw = ImageDraw.Draw(image)
        palette = [_colour(rng) for _ in range(rng.integers(2, 8))]
        for _ in range(rng.integers(40, 300)):
            x, y = rng.uniform(-20, 2 * SIDE, 2).tolist()
            w, h = (rng.pareto(2.0, 2) * 12 + 4).tolist()
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x, y, x + w, y + h), fill=palette[rng.integers(len(palette))])
        return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1) / SIDE
    if kind < 0.7:
        spectrum = np.fft.rfft2(rng.normal(size=(SIDE, SIDE)))
        frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None] * rng.uniform(0.3, 3), np.fft.rfftfreq(SIDE))
        field = np.fft.irfft2(spectrum / (frequency + 0.01) ** rng.uniform(0.5, 3), (SIDE, SIDE))
    else:
        field = np.zeros((SIDE, SIDE))
        for _ in range(rng.integers(1, 4)):
            wave = rng.normal(size=2) * rng.uniform(3, 25)
            field += np.sin(2 * math.pi * (grid @ wave) + rng.uniform(0, 6))
    field = (field - field.mean()) / (field.std() + 1e-6) * rng.choice([0.5, 1.0, 8.0])
    share = 1 / (1 + np.exp(-2 * field))[..., None]
    mixed = share * np.array(_colour(rng)) + (1 - share) * np.array(_colour(rng))
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def make_views(corpus: Corpus, indexes: Sequence[int], seed: int) -> NDArray[np.uint8]:
    """Return the views of the pictures `indexes` and, for every ten, one drawn picture more; shuffled.

    uint8 (n, SIDE, SIDE, 3); the same arguments give the same bytes.
    """
    rng = np.random.default_rng(seed)
    views: list[View] = []
    previous: Image.Image | None = None
    for index in indexes:
        picture = corpus.picture(index)
        for view in range(corpus.views(index)):
            out = crop(picture, rng, 0.6 if view == 0 else 0.2)
            if view and previous is not None and rng.random() < 0.12:
                out = Image.blend(out, previous, float(rng.uniform(0.2, 0.5)))
            views.append(np.asarray(recolour(out, rng) if view else out))
        previous = crop(picture, rng)
    for _ in range(max(1, len(views) // 20)):
        views.append(np.asarray(strokes(rng)))
        views.append(np.asarray(recolour(pattern(rng), rng)))
    return np.stack(views)[rng.permutation(len(views))]
