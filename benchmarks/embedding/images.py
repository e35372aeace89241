"""The photographs that every measurement reads, and how no two messages carry the same bytes."""

from __future__ import annotations

import io
import itertools
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from common.processes import ROOT

SHARED = Path(os.environ.get("LIKEWISE_SHARED", ROOT.parent / "shared"))
SAMPLE = SHARED / "data/imagenet-sample"

# Photographs in the wheels of packages that the server or the demo needs anyway.
IN_PACKAGES = {
    "skimage": ("data", "astronaut.png chelsea.png coffee.png hubble_deep_field.jpg ihc.png retina.jpg rocket.jpg"),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}
LONGEST = 500  # pixels of a made picture's longer side: the size of most of ImageNet's
VIEWS = (0.0, 0.1, 0.2, 0.3)  # parts of the width and height that a made picture leaves out
TAG = 8  # bytes
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Photographs:
    """Encoded pictures, and where they are from."""

    source: str
    data: list[bytes]

    def facts(self) -> dict[str, object]:
        """Return what a reader of the figures must know about the pictures."""
        sizes = [len(data) for data in self.data]
        return {"source": self.source, "count": len(sizes), "mean_bytes": round(sum(sizes) / len(sizes))}


def photographs() -> Photographs:
    """Return the sample of ImageNet where it is, else pictures made from those in the installed packages."""
    files = sorted(SAMPLE.glob("*.JPEG"))
    if files:
        source = "photographs of ImageNet (LIKEWISE_SHARED/data/imagenet-sample)"
        return Photographs(source, [path.read_bytes() for path in files])
    made = [jpeg for path in _packaged() for jpeg in _views(path)]
    if not made:
        raise SystemExit("no pictures: set LIKEWISE_SHARED, or pip install 'likewise[demo]'")
    return Photographs("JPEGs made from scikit-image's and scikit-learn's pictures", made)


def new_tag() -> bytes:
    """Return bytes that this process has not had before."""
    return next(_numbers).to_bytes(TAG, "little")


def tagged(data: bytes) -> bytes:
    """Return the same picture in bytes of its own: decoders stop at a JPEG's end marker, hashes do not."""
    return data + new_tag()


def _packaged() -> list[Path]:
    found = []
    for package, (folder, names) in IN_PACKAGES.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            paths = [Path(spec.origin).parent / folder / name for name in names.split()]
            found += [path for path in paths if path.exists()]
    return found


def _views(path: Path) -> list[bytes]:
    """Return JPEGs of the picture, each cut a little closer than the one before."""
    views = []
    with Image.open(path) as file:
        whole = file.convert("RGB")
    for margin in VIEWS:
        left, top = round(whole.width * margin / 2), round(whole.height * margin / 2)
        view = whole.crop((left, top, whole.width - left, whole.height - top))
        view.thumbnail((LONGEST, LONGEST))
        buffer = io.BytesIO()
        view.save(buffer, "JPEG", quality=92)
        views.append(buffer.getvalue())
    return views
