"""A picture with a label, and what the demo reads from its pixels: the baseline's vector and a thumbnail."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from likewise.results import Float32

PIXELS = 16  # the side of the baseline's thumbnails
THUMBNAIL = 128  # pixels, enough for twice the density it is shown at on a phone


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image, or the path of one, with its class and attributes."""

    id: str
    label: str
    source: bytes | Path
    attributes: Mapping[str, Any] = field(default_factory=dict)


def opened(source: bytes | Path, *, side: int = 0) -> Image.Image:
    """Return a picture as upright RGB. Raises OSError or ValueError if it cannot be read.

    Where no more than `side` pixels are wanted, a JPEG may come smaller, which is quicker.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if side:
            image.draft("RGB", (side, side))
        return ImageOps.exif_transpose(image).convert("RGB")


def pixel_vectors(pictures: Sequence[Picture]) -> Float32:
    """Return each picture shrunk to 16x16 RGB as one row (n, 768) in 0..1: the baseline that looks at pixels.

    A picture that cannot be read here, though the server could, becomes a grey row.
    """
    rows = np.full((len(pictures), PIXELS * PIXELS * 3), 0.5, np.float32)
    for i, picture in enumerate(pictures):
        try:
            small = opened(picture.source).resize((PIXELS, PIXELS), Image.Resampling.BOX)
        except (OSError, ValueError):
            continue
        rows[i] = np.asarray(small, np.float32).ravel() / 255
    return rows


def thumbnail_uri(source: bytes | Path) -> str:
    """Return a small JPEG of a picture as a data: URI, "" if it cannot be read."""
    try:
        image = opened(source, side=2 * THUMBNAIL)
    except (OSError, ValueError):
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, quality=82)).decode()


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    """Return an image as JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
