"""Bytes in, checked pixels out: decode, turn upright, make RGB, resize and crop as the backbone wants.

The geometry is torchvision's: short side to `resize`, centre `crop`.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from likewise_server.errors import InvalidArgument, OutOfRange

# Decoders that read plain raster files. Left out on purpose: EPS and PDF (they start other
# programs), WMF, FITS, and the rest that nobody sends for an embedding.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF"),
    *("JPEG2000", "ICO", "PPM", "TGA", "SGI", "PCX", "QOI", "ICNS"),
)
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
LONGEST = 4  # ratio of sides; resizing all of a 1 x 60000 strip before cropping would take gigabytes
DECODING = "pillow-1"  # part of every fingerprint: change it when decoding changes pixels

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


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Short side to `resize` pixels, centre `crop` square, then (x/255 - mean) / std."""

    resize: int
    crop: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"  # bilinear, bicubic, nearest, lanczos


def guard(limits: ImageLimits) -> None:
    """Make Pillow itself refuse what is over `limits`, also inside containers. Call once per process."""
    Image.init()  # registers every decoder; Pillow loads most of them only when asked to
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # What a decoder grumbles about while it reads a file all the same is no news to an operator.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return the upright RGB image in `data` (its first frame, if it has several).

    Raises InvalidArgument if the bytes are no readable image, OutOfRange if they are over a limit.
    """
    if not data:
        raise InvalidArgument("the image is empty (0 bytes): send the bytes of an image file")
    if len(data) > limits.max_bytes:
        raise OutOfRange(f"the image has {len(data)} bytes, over the limit of {limits.max_bytes}: shrink it")
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        _check_pixels(image.size, limits)
        image.load()
        _check_pixels(image.size, limits)
        return to_rgb(_upright(image))
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


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` in mode RGB: 16-bit scaled, CMYK through its profile, alpha onto white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale instead of clamping, which is what Pillow's own conversion does."""
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    x = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(x.min()), float(x.max())
    if values.dtype.kind != "f" and low >= 0 and high <= 65535:  # noqa: PLR2004  # 16 bits
        return np.round(x / 257).astype(np.uint8)
    if low >= 0 and high <= 1:
        return np.round(x * 255).astype(np.uint8)
    if low >= 0 and high <= 255:  # noqa: PLR2004  # already in 8-bit range
        return np.round(x).astype(np.uint8)
    return np.round((x - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile: the plain conversion below is what other software shows
        else:
            if converted is not None:
                return converted
    return image.convert("RGB")


def preprocess(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Return the resized centre crop of an RGB `image` as a (crop, crop, 3) uint8 array.

    Equal to torchvision's Resize and CenterCrop on the same Pillow image, pixel for pixel, up to a ratio of
    sides of LONGEST; of a longer strip only the cropped part is resized, where a value may differ by rounding.
    """
    width, height = image.size
    short = min(width, height)
    resample = Image.Resampling[how.interpolation.upper()]
    # torchvision truncates the long side and rounds the crop's corner; so do we.
    resized_w = how.resize if width == short else int(how.resize * width / height)
    resized_h = how.resize if height == short else int(how.resize * height / width)
    left = round((resized_w - how.crop) / 2.0)
    top = round((resized_h - how.crop) / 2.0)
    if max(width, height) <= LONGEST * short:
        resized = image.resize((resized_w, resized_h), resample)
        return np.asarray(resized.crop((left, top, left + how.crop, top + how.crop)))
    scale_x, scale_y = width / resized_w, height / resized_h
    box = (left * scale_x, top * scale_y, (left + how.crop) * scale_x, (top + how.crop) * scale_y)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
    return np.asarray(image.resize((how.crop, how.crop), resample, box=box))
