"""Bytes in, checked pixels out: decode, turn upright, make RGB, resize and crop as the backbone wants.

`pixels_of` is all of it. A JPEG whose header promises nothing unusual goes through simplejpeg and torch; every other
file, and a JPEG that simplejpeg objects to, goes through Pillow, which has the last word on what is an image.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from likewise_server.bounding import Bounded, check_jpeg
from likewise_server.colours import to_rgb
from likewise_server.errors import InvalidArgument, OutOfRange
from likewise_server.peeking import peek_pixels
from likewise_server.resizing import (
    LOOKS,
    Preprocessing,
    Views,
    croppable,
    crops,
    preprocess,
    resized_crops,
    stored_windows,
    windows,
)

__all__ = [
    "LOOKS",
    "Decoding",
    "ImageLimits",
    "Preprocessing",
    "Views",
    "decode",
    "decoding_tag",
    "guard",
    "peek_pixels",
    "pixels_of",
    "plain_jpeg",
    "preprocess",
    "to_rgb",
]

Decoding = Literal["scaled", "full", "nvjpeg"]

# Decoders that read plain raster files. Left out on purpose: EPS and PDF (they start other
# programs), WMF, FITS, and the rest that nobody sends for an embedding.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF"),
    *("JPEG2000", "ICO", "PPM", "TGA", "SGI", "PCX", "QOI", "ICNS"),
)
SCHEME = "turbo-1"  # change it when decoding changes pixels
NVJPEG = "nvjpeg-1"  # likewise, on a GPU: close to libjpeg's pixels, not equal
# "scaled" decodes a JPEG at 1/8, 1/4 or 1/2 while its short side stays this many times `resize`: the least at which
# the vectors of photographs kept a cosine of 0.999 (docs/decoding.md).
SPARE = 3.5
JPEG, END = b"\xff\xd8", b"\xff\xd9"  # the first and the last bytes of one
UPRIGHT = 1  # the EXIF orientation of a picture that is stored as it is seen

# What Pillow's plug-ins raise on damaged files, found by feeding them damaged files.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, EOFError, struct.error),
    *(OverflowError, AttributeError, ZeroDivisionError, NotImplementedError, MemoryError, RuntimeError),
)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may cost: encoded `max_bytes`, and `max_pixels` checked before decoding."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000


def decoding_tag(decoding: Decoding) -> str:
    """Return the name of how bytes become pixels, a part of every fingerprint."""
    if decoding == "nvjpeg":
        return NVJPEG
    return f"{SCHEME}/{decoding}-{SPARE}" if decoding == "scaled" else f"{SCHEME}/{decoding}"


def guard(limits: ImageLimits) -> None:
    """Make Pillow itself refuse what is over `limits`, also inside containers. Call once per process."""
    Image.init()  # registers every decoder; Pillow loads most of them only when asked to
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # What a decoder grumbles about while it reads a file all the same is no news to an operator.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def pixels_of(
    data: bytes, how: Preprocessing, limits: ImageLimits, decoding: Decoding = "scaled", views: Views = ""
) -> NDArray[np.uint8]:
    """Return the upright (crop, crop, 3) uint8 pixels of the image in `data`, C-contiguous.

    "full" decodes every pixel, and so does "nvjpeg" what is not decoded on a GPU; "scaled" leaves out detail that a
    large JPEG loses in the resize anyway. With `views`, (LOOKS[views], crop, crop, 3): the same pixels first, then
    their mirror image, then likewise the corners. Lets go of the GIL while it works. Raises what `decode` does.
    """
    with _told(data, limits):
        image = _opened(data, limits)
        shrink = _shrink(image.size, how) if decoding == "scaled" else 1
        pixels = _quick(data, image, shrink) if croppable(image.size, how) else None
        if pixels is None:
            image = _loaded(image, limits)
    made = crops(image, how, windows(image.size, how, views)) if pixels is None else _crops(pixels, image, how, views)
    return np.stack([look for crop in made for look in (crop, crop[:, ::-1])]) if views else made[0]


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return the upright RGB image in `data` (its first frame, if it has several), by Pillow alone.

    Raises InvalidArgument if the bytes are no readable image, OutOfRange if they are over a limit.
    """
    with _told(data, limits):
        return _loaded(_opened(data, limits), limits)


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header, and no pixel."""
    if not data:
        raise InvalidArgument("the image is empty (0 bytes): send the bytes of an image file")
    if len(data) > limits.max_bytes:
        raise OutOfRange(f"the image has {len(data)} bytes, over the limit of {limits.max_bytes}: shrink it")
    if data.startswith(JPEG):
        check_jpeg(data)
    file = Bounded(data)
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    _check_pixels(image.size, limits)
    file.opened(image.format)
    return image


def _loaded(image: Image.Image, limits: ImageLimits) -> Image.Image:
    image.load()
    _check_pixels(image.size, limits)
    return to_rgb(_upright(image))


@contextmanager
def _told(data: bytes, limits: ImageLimits) -> Iterator[None]:
    """Say what is wrong with `data` in the words of our own errors."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OutOfRange(f"the image has over {limits.max_pixels} pixels: shrink it") from error
    except UnidentifiedImageError as error:
        start = data[:8].hex(" ")
        raise InvalidArgument(
            f"not an image in a supported format, or a damaged one (first bytes {start}): "
            "send an intact JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
        ) from error
    except DAMAGE as error:
        cause = str(error) or type(error).__name__
        raise InvalidArgument(f"the image is damaged or cut short ({cause}): send an intact file") from error


def plain_jpeg(data: bytes, limits: ImageLimits) -> tuple[int, int] | None:
    """Return (width, height) of an upright, baseline YCbCr JPEG with an end; None for any other image.

    Reads the header only, and raises what `decode` does of that.
    """
    with _told(data, limits):
        image = _opened(data, limits)
    if _colours(data, image) != "YCbCr" or image.info.get("progressive") or not data.endswith(END):
        return None
    return image.size if _orientation(image) == UPRIGHT else None


def _colours(data: bytes, image: Image.Image) -> str:
    """Return the colour space, "YCbCr" or "RGB", of a JPEG that simplejpeg can decode as Pillow would, else ""."""
    if image.format != "JPEG" or image.mode != "RGB":
        return ""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # damage, or a subsampling it has no name for
        return ""
    # Two readers of one header, and limits were checked by the one, memory is taken by the other: they must agree.
    return colours if (width, height) == image.size and colours in ("YCbCr", "RGB") else ""


def _shrink(size: tuple[int, int], how: Preprocessing) -> int:
    """Return by how much a JPEG's sides may be divided in decoding."""
    return next((n for n in (8, 4, 2) if min(size) >= n * SPARE * how.resize), 1)


def _quick(data: bytes, image: Image.Image, shrink: int) -> NDArray[np.uint8] | None:
    """Return the (h, w, 3) pixels of an intact JPEG, its sides divided by `shrink` and rounded up, or None.

    Undivided they are what Pillow gives: both are libjpeg-turbo, and this one refuses where that one warns.
    """
    if not _colours(data, image):
        return None
    width, height = image.size
    least = (-(-height // shrink), -(-width // shrink)) if shrink > 1 else (0, 0)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except (ValueError, KeyError):  # damage that libjpeg would go on from; Pillow decides
        return None
    return pixels


def _crops(pixels: NDArray[np.uint8], image: Image.Image, how: Preprocessing, views: Views) -> list[NDArray[np.uint8]]:
    """Resize and crop as stored, then turn the crops, which are small."""
    orientation = _orientation(image)
    places = stored_windows(image.size, how, orientation, views)
    resized = resized_crops(torch.from_numpy(pixels), image.size, places, how)
    squares = [np.ascontiguousarray(square.numpy()) for square in resized]
    return squares if orientation == UPRIGHT else [_turned(square, image) for square in squares]


def _turned(square: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
    stored = Image.fromarray(square)
    stored.info = image.info
    return np.array(_upright(stored))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:
        return UPRIGHT
    return value if isinstance(value, int) and value in range(2, 9) else UPRIGHT


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise OutOfRange(f"the image is {width}x{height}, over the limit of {limits.max_pixels} pixels: shrink it")
    if width < 1 or height < 1:
        raise InvalidArgument(f"the image is {width}x{height}: it has no pixels")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE:  # unreadable EXIF says nothing about which way is up; the pixels are fine
        return image
