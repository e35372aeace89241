"""The sets of labelled photographs, and their vectors by the server's own backbones, kept by fingerprint."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.processes import ROOT
from embedding.images import SHARED

# Sets of classes to be told apart, and sets that only serve as strangers.
SETS = (
    "imagenette224",
    "caltech101",
    "monkeys10",
    "signdigits10",
    "dtd10",
    "pacs-photo",
    "pacs-art_painting",
    "pacs-cartoon",
    "pacs-sketch",
    "omniglot40",
)
STRANGERS = "caltech101-background"
SUFFIXES = {".jpg", ".jpeg", ".png"}
BATCH = 32
CACHE = ROOT / "build" / "fewshot"

Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PictureSet:
    """A set's pictures by id ("class/file"), sorted, and a hash of ids and bytes."""

    name: str
    ids: tuple[str, ...]
    digest: str

    @property
    def classes(self) -> dict[str, list[int]]:
        """Positions of each class's pictures."""
        found: dict[str, list[int]] = {}
        for position, picture in enumerate(self.ids):
            found.setdefault(picture.partition("/")[0], []).append(position)
        return found


def read_set(name: str) -> PictureSet | None:
    """Return a set of the shared pictures, None where it is not there."""
    folder = SHARED / "data" / name
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        return None
    ids = tuple(sorted(file.relative_to(folder).as_posix() for file in files))
    whole = hashlib.sha256()
    for picture in ids:
        whole.update(f"{picture}\0".encode() + hashlib.sha256((folder / picture).read_bytes()).digest())
    return PictureSet(name, ids, whole.hexdigest())


def weights_dir() -> Path | None:
    """Return where backbones' weights are: LIKEWISE_WEIGHTS_DIR, else the shared ones."""
    folder = Path(os.environ.get("LIKEWISE_WEIGHTS_DIR") or SHARED / "weights")
    return folder if folder.is_dir() else None


def vectors(backbone: str, sets: list[PictureSet]) -> tuple[str, dict[str, Vectors]]:
    """Return the space's fingerprint and the unit vectors of each set, (n, d) float64, in the order of its ids.

    Raises LikewiseError where the backbone has no weights here.
    """
    from likewise_server.backbones import registry  # noqa: PLC0415  (torch is wanted only where pictures are)

    loaded = registry.load(
        backbone, weights_dir=weights_dir(), device=registry.choose_devices("cpu")[0], precision="fp32"
    )
    ref = loaded.ref()
    space = loaded.fingerprint(ref)
    CACHE.mkdir(parents=True, exist_ok=True)
    found = {}
    for pictures in sets:
        path = CACHE / f"{space.replace(':', '-')}-{pictures.digest[:16]}.npy"
        if not path.exists():
            print(f"{backbone}: {len(pictures.ids)} pictures of {pictures.name}", file=sys.stderr, flush=True)
            np.save(path, _embedded(loaded, pictures))
        made = np.load(path).astype(np.float64)
        found[pictures.name] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return space, found


def _embedded(backbone: object, pictures: PictureSet) -> NDArray[np.float32]:
    from likewise_server.backbones.backbone import Backbone  # noqa: PLC0415
    from likewise_server.images import ImageLimits, guard, pixels_of  # noqa: PLC0415

    assert isinstance(backbone, Backbone)  # noqa: S101
    limits = ImageLimits()
    guard(limits)
    made, folder = [], SHARED / "data" / pictures.name
    for first in range(0, len(pictures.ids), BATCH):
        pixels = [
            pixels_of((folder / picture).read_bytes(), backbone.preprocessing, limits, backbone.decoding)
            for picture in pictures.ids[first : first + BATCH]
        ]
        made.append(np.asarray(backbone.launch(pixels, backbone.ref(), 0)(), np.float32))
    return np.concatenate(made)
