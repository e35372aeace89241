"""Upright pictures in, the backbone's square out: short side to `resize`, centre `crop`, as torchvision does it.

`preprocess` is Pillow's resize and for every picture. `resized_crop` is torch's, for arrays of common shape: it runs on
the bytes as they lie, stops at the crop's edge, and takes less than half the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

# Of the looks at one picture: the centre; it and its mirror image; it and the four corners, each with its mirror image.
Views: TypeAlias = Literal["", "flip", "crops"]
LOOKS: dict[Views, int] = {"": 1, "flip": 2, "crops": 10}

LONGEST = 4  # ratio of sides; resizing all of a 1 x 60000 strip before cropping would take gigabytes

# What F.interpolate calls; it would resize the whole picture, these also take a scale and stop at any size.
OPERATORS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,  # noqa: SLF001
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,  # noqa: SLF001
}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Short side to `resize` pixels, centre `crop` square, then (x/255 - mean) / std."""

    resize: int
    crop: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"  # bilinear, bicubic, nearest, lanczos


class Window(NamedTuple):
    """A picture is resized to `width` x `height`; the corner of the crop in that is at (`left`, `top`)."""

    width: int
    height: int
    left: int
    top: int


def window(size: tuple[int, int], how: Preprocessing) -> Window:
    """Return where the crop of an upright picture of `size` (width, height) lies."""
    width, height = size
    short = min(width, height)
    # torchvision truncates the long side and rounds the crop's corner; so do we.
    resized_w = how.resize if width == short else int(how.resize * width / height)
    resized_h = how.resize if height == short else int(how.resize * height / width)
    return Window(resized_w, resized_h, round((resized_w - how.crop) / 2.0), round((resized_h - how.crop) / 2.0))


def windows(size: tuple[int, int], how: Preprocessing, views: Views = "") -> list[Window]:
    """Return where the crops of an upright picture of `size` lie: in the centre, then, if asked for, in the corners.

    Mirror images are of the same crops. Along a side that is no longer than the crop there is one place only.
    """
    centre = window(size, how)
    if views != "crops":
        return [centre]
    lefts = (0, centre.width - how.crop) if centre.width > how.crop else (centre.left, centre.left)
    tops = (0, centre.height - how.crop) if centre.height > how.crop else (centre.top, centre.top)
    return [centre, *(Window(centre.width, centre.height, left, top) for top in tops for left in lefts)]


def stored_windows(size: tuple[int, int], how: Preprocessing, orientation: int, views: Views = "") -> list[Window]:
    """Return where the same crops lie in the picture as it is stored, its EXIF orientation being 1 to 8."""
    turned = orientation >= 5  # noqa: PLR2004  # the rows are stored as columns
    upright = windows(size[::-1] if turned else size, how, views)
    return [_stored(at, how, orientation, turned=turned) for at in upright]


def _stored(at: Window, how: Preprocessing, orientation: int, *, turned: bool) -> Window:
    if turned:
        height, width, top, left = at
        mirrored, flipped = orientation in (7, 8), orientation in (6, 7)
    else:
        width, height, left, top = at
        mirrored, flipped = orientation in (2, 3), orientation in (3, 4)
    return Window(
        width, height, width - how.crop - left if mirrored else left, height - how.crop - top if flipped else top
    )


def preprocess(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Return the resized centre crop of an RGB `image` as a (crop, crop, 3) uint8 array.

    Equal to torchvision's Resize and CenterCrop on the same Pillow image, pixel for pixel, up to a ratio of
    sides of LONGEST; of a longer strip only the cropped part is resized, where a value may differ by rounding.
    """
    return crops(image, how, windows(image.size, how))[0]


def crops(image: Image.Image, how: Preprocessing, places: Sequence[Window]) -> list[NDArray[np.uint8]]:
    """Return the crops of an RGB `image` at `places`, as `preprocess` makes them; it is resized once."""
    width, height = image.size
    resample = Image.Resampling[how.interpolation.upper()]
    resized_w, resized_h = places[0].width, places[0].height
    if max(width, height) <= LONGEST * min(width, height):
        resized = image.resize((resized_w, resized_h), resample)
        return [np.array(resized.crop((at.left, at.top, at.left + how.crop, at.top + how.crop))) for at in places]
    scale_x, scale_y = width / resized_w, height / resized_h
    made: list[NDArray[np.uint8]] = []
    for at in places:
        box = (at.left * scale_x, at.top * scale_y, (at.left + how.crop) * scale_x, (at.top + how.crop) * scale_y)
        box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
        made.append(np.array(image.resize((how.crop, how.crop), resample, box=box)))
    return made


def croppable(size: tuple[int, int], how: Preprocessing) -> bool:
    """Return whether `resized_crop` does a picture of `size`: no strip, nothing but OPERATORS, no padding.

    And nothing that shrinks by 5/4, 7/4, 9/4 or 11/4, where so many sums lie half way between two levels that torch's
    weights, which have 16 bits, round one value in twenty otherwise than Pillow's, which have 22.
    """
    if how.interpolation not in OPERATORS or max(size) > LONGEST * min(size) or how.crop > how.resize:
        return False
    at = window(size, how)
    return not any(
        old < 3 * new and new // math.gcd(old, new) == 4  # noqa: PLR2004
        for old, new in zip(size, (at.width, at.height), strict=True)
    )


def resized_crop(pixels: torch.Tensor, size: tuple[int, int], at: Window, how: Preprocessing) -> torch.Tensor:
    """Return the crop at `at` of the picture whose (h, w, 3) uint8 `pixels` these are, (crop, crop, 3) uint8, a view.

    `size` is the picture's (width, height), of which `pixels` may be a fraction with its sides rounded up. On the
    CPU the values are within 2 of `preprocess`, and no thread but the caller's works; on CUDA they are rounded from
    float.
    """
    return resized_crops(pixels, size, [at], how)[0]


def resized_crops(
    pixels: torch.Tensor, size: tuple[int, int], places: Sequence[Window], how: Preprocessing
) -> list[torch.Tensor]:
    """Return the crops at `places`, as `resized_crop` does; the picture is resized once, as far as they reach."""
    bottom, right = max(at.top for at in places) + how.crop, max(at.left for at in places) + how.crop
    whole_size = (places[0].height, places[0].width)
    sizes, scales = [], []
    for stored, side, whole, end in zip(pixels.shape, size[::-1], whole_size, (bottom, right), strict=False):
        # The operator takes an output as long as its input for one that need not be resized.
        sizes.append(whole if end == stored else end)
        scales.append(whole / stored if end == stored else whole / (side / round(side / stored)))
    x = pixels.permute(2, 0, 1)[None]  # height, width and channels as they lie are what torch calls channels-last
    resize = OPERATORS[how.interpolation]
    if pixels.is_cuda:  # where the operator knows no integers
        y: torch.Tensor = resize(x.float(), sizes, False, *scales).round_().clamp_(0, 255).to(torch.uint8)
    else:
        y = resize(x, sizes, False, *scales)
    resized = y[0].permute(1, 2, 0)
    return [resized[at.top : at.top + how.crop, at.left : at.left + how.crop] for at in places]
