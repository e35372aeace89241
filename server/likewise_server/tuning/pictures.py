"""The pictures that tuning decodes: those of a folder, or crops of photographs that come with scikit-learn."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from likewise_server.errors import FailedPrecondition, InvalidArgument, LikewiseError
from likewise_server.images import ImageLimits, decode, guard

MOST = 64  # of a folder
SIZE = (500, 375)  # width, height: ImageNet's median photograph
QUALITY = 90
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded images, all of them readable, and a line for people on where they are from."""

    data: list[bytes]
    told: str


def bundled() -> Pictures:
    """Return eight JPEG crops of scikit-learn's two photographs. Raises FailedPrecondition without scikit-learn."""
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that would take two seconds
    if spec is None or spec.origin is None:
        raise FailedPrecondition("scikit-learn is missing: pip install 'likewise[server]', or give --images FOLDER")
    data: list[bytes] = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(Path(spec.origin).parent / "datasets/images" / name) as file:
            photograph = file.convert("RGB")
        right, bottom = photograph.width - SIZE[0], photograph.height - SIZE[1]
        for x, y in ((0, 0), (right, 0), (0, bottom), (right, bottom)):
            buffer = io.BytesIO()
            photograph.crop((x, y, x + SIZE[0], y + SIZE[1])).save(buffer, "JPEG", quality=QUALITY)
            data.append(buffer.getvalue())
    width, height = SIZE
    told = f"{len(data)} crops of scikit-learn's photographs, {width}x{height} JPEGs of quality {QUALITY}"
    return Pictures(data, f"{told} ({_kb(data)} kB on average); --images takes yours")


def from_folder(folder: Path, limits: ImageLimits) -> Pictures:
    """Return up to MOST readable pictures, spread evenly over those below `folder`. Raises InvalidArgument for none."""
    if not folder.is_dir():
        raise InvalidArgument(f"--images {folder}: there is no such folder; give one with pictures in it")
    guard(limits)  # registers the decoders
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    step = max(1, len(files) // MOST)
    data = [found for path in files[::step][:MOST] if (found := _readable(path, limits))]
    if not data:
        raise InvalidArgument(
            f"--images {folder}: no picture there could be read, of {len(files)} files that look like one; "
            "give a folder with JPEG, PNG or WebP files"
        )
    return Pictures(data, f"{len(data)} pictures of {folder} ({_kb(data)} kB on average)")


def _readable(path: Path, limits: ImageLimits) -> bytes | None:
    data = path.read_bytes()
    try:
        decode(data, limits)
    except LikewiseError:
        return None
    return data


def _kb(data: list[bytes]) -> int:
    return round(sum(map(len, data)) / len(data) / 1000)
