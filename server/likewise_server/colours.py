"""Whatever a picture's pixels are, as three bytes of red, green and blue."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


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
