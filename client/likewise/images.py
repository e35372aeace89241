"""Whatever people hold a picture in, as encoded bytes: paths, bytes, PIL images, arrays, tensors."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from likewise.errors import InvalidArgument, LikewiseError, NotFound, OutOfRange

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, "PilImage", NDArray[Any], Any]

MAX_CHANNELS = 4


def to_bytes(image: ImageLike) -> bytes:
    """Return the encoded bytes of an image; what is not encoded yet becomes PNG, which loses nothing.

    Arrays are (h, w), (h, w, 3) or (h, w, 4), uint8 or floats in 0..1; tensors may also be (3, h, w).
    Raises NotFound for a missing file, InvalidArgument for what is no image.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return _read(Path(image))
    if hasattr(image, "detach") and hasattr(image, "cpu"):  # a torch tensor, without importing torch
        return _encode(_channels_last(np.asarray(image.detach().cpu())))
    if isinstance(image, np.ndarray):
        return _encode(image)
    if hasattr(image, "save") and hasattr(image, "mode"):
        from PIL import ImageOps  # noqa: PLC0415  # only where a Pillow image is encoded

        return _png(ImageOps.exif_transpose(image))  # PNG would lose which way is up
    raise InvalidArgument(f"cannot make an image of a {type(image).__name__}: give a path, bytes, PIL image or array")


def encoded(image: ImageLike, max_bytes: int) -> bytes | LikewiseError:
    """Return the bytes of an image, or what is wrong with it: one bad file must not stop the others."""
    try:
        data = to_bytes(image)
    except LikewiseError as error:
        return error
    except (OSError, ValueError, TypeError, SyntaxError) as error:  # Pillow, of a picture that it had not read yet
        return InvalidArgument(f"cannot read this image: {error}")
    if len(data) > max_bytes:
        return OutOfRange(f"the image has {len(data)} bytes, over the server's limit of {max_bytes}: shrink it")
    return data


def weight(data: bytes | LikewiseError) -> int:
    """Return the bytes something adds to a message."""
    return len(data) + 16 if isinstance(data, bytes) else 0


def uri_of(image: ImageLike) -> str:
    """Return where an image is, "" for one in memory."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path}") from error
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror or error}") from error


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """Turn (c, h, w), which tensors are, into (h, w, c)."""
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] > MAX_CHANNELS:  # noqa: PLR2004
        return array.transpose(1, 2, 0)
    return array


def _encode(array: NDArray[Any]) -> bytes:
    from PIL import Image  # noqa: PLC0415  # only where an array is encoded

    if array.ndim == 3 and array.shape[2] == 1:  # noqa: PLR2004
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:  # noqa: PLR2004
        raise InvalidArgument(f"an image array is (h, w), (h, w, 3) or (h, w, 4); this one is {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InvalidArgument("a float image array holds values in 0..1: divide by 255, or give uint8")
        array = np.round(array * 255)
    elif array.dtype == np.bool_:
        array = array * 255
    elif array.dtype != np.uint8:
        raise InvalidArgument(f"an image array is uint8, or float in 0..1; this one is {array.dtype}")
    return _png(Image.fromarray(np.ascontiguousarray(array.astype(np.uint8))))


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"):
        image = image.convert("RGB")
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
