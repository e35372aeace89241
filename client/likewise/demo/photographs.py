"""The photographs inside scikit-image's and scikit-learn's packages, cut into pieces to index and to ask with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from likewise.demo.extras import DemoError, package_folder
from likewise.demo.pictures import Picture, jpeg, opened

FROM_SKIMAGE = """
astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png gravel.png
horse.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png
"""
FILES = {"skimage": ("data", FROM_SKIMAGE), "sklearn": ("datasets/images", "china.jpg flower.jpg")}
TITLES = {"chelsea": "cat", "clock_motion": "clock", "hubble_deep_field": "galaxies", "motorcycle_left": "motorcycle"}
LONGEST = 512  # pixels of a photograph's longer side
GRID = 3  # places of a piece along each side
SCALES = (0.5, 0.33)  # of the photograph's sides
BLANK = 10.0  # standard deviation of grey levels under which a piece shows nothing to go by
CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "another place": jpeg,
    "mirrored": lambda image: jpeg(ImageOps.mirror(image)),
    "darker": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.55)),
    "64 pixels small": lambda image: jpeg(image.resize((64, 64), Image.Resampling.BICUBIC)),
    "JPEG quality 60": lambda image: jpeg(image, quality=60),
}


def photographs() -> dict[str, Image.Image]:
    """Return the photographs by title. Raises DemoError if the packages that hold them are missing."""
    found = {}
    for package, (folder, names) in FILES.items():
        for name in names.split():
            path = package_folder(package) / folder / name
            if not path.exists():  # a package may stop carrying one
                continue
            image = opened(path)
            image.thumbnail((LONGEST, LONGEST))
            found[TITLES.get(path.stem, path.stem)] = image
    if len(found) < 2:  # noqa: PLR2004
        raise DemoError(
            "the installed scikit-image carries no photographs; give a folder of your own: likewise demo PATH"
        )
    return found


def pieces(photos: dict[str, Image.Image]) -> list[Picture]:
    """Return each photograph as a whole and cut into a grid of pieces at two scales."""
    made = []
    for title, photo in photos.items():
        made.append(_piece(title, photo, 0.0, 0.0, 1.0))
        for scale in SCALES:
            for x, y in ((x, y) for y in range(GRID) for x in range(GRID)):
                step = (1 - scale) / (GRID - 1)
                made.append(_piece(title, photo, x * step, y * step, scale))
    return made


def queries(photos: dict[str, Image.Image], each: int, seed: int) -> list[Picture]:
    """Return pieces from other places and at other scales than those indexed, `each` times for every change."""
    rng = np.random.default_rng(seed)
    return [
        Picture(f"query {title} {change} {i}", title, apply(_anywhere(photo, rng)), {"change": change})
        for title, photo in photos.items()
        for change, apply in CHANGES.items()
        for i in range(each)
    ]


def _piece(title: str, photo: Image.Image, x: float, y: float, scale: float) -> Picture:
    """Cut out the piece whose corner is at (x, y), all in parts of the photograph's sides."""
    attributes = {"photo": title, "x": round(x, 2), "y": round(y, 2), "scale": scale}
    return Picture(f"{title} {x:.2f},{y:.2f} x{scale:g}", title, jpeg(_cut(photo, x, y, scale)), attributes)


def _cut(photo: Image.Image, x: float, y: float, scale: float) -> Image.Image:
    width, height = photo.size
    box = (round(x * width), round(y * height), round((x + scale) * width), round((y + scale) * height))
    return photo.crop(box)


def _anywhere(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a piece at random, drawn again while it is blank sky or paper."""
    best = photo
    for piece in _tries(photo, rng):
        best = piece
        if np.asarray(piece.convert("L"), np.float32).std() >= BLANK:
            break
    return best


def _tries(photo: Image.Image, rng: np.random.Generator) -> Iterator[Image.Image]:
    for _ in range(20):
        scale = rng.uniform(0.3, 0.6)
        x, y = rng.uniform(0, 1 - scale, 2)
        yield _cut(photo, x, y, scale)
