"""A person's own pictures: a folder of class folders, or a torchvision data set by name."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from likewise.demo.extras import DemoError, need
from likewise.demo.pictures import Picture, png

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MOST = 2000  # pictures, which a laptop embeds in under a minute
MIN_CLASSES, MIN_IMAGES = 2, 2


def folder(path: Path, seed: int) -> list[Picture]:
    """Return the pictures below the class folders of `path`, at most 2000, evenly over the classes.

    Raises DemoError if there are too few.
    """
    if not path.is_dir():
        raise DemoError(f"{path} is no folder: give one that holds a folder of pictures for each class")
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [
        Picture(file.relative_to(path).as_posix(), entry.name, file)
        for entry in classes
        for file in sorted(entry.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    return enough(_sample(found, seed), str(path))


def torchvision_set(name: str, root: Path, seed: int) -> list[Picture]:
    """Return at most 2000 pictures of a torchvision data set, downloaded to `root` if need be.

    Raises DemoError if there is no such set, it gives no classes, or the download fails.
    """
    sets = need("torchvision.datasets")
    if name not in sets.__all__:
        raise DemoError(f"torchvision has no data set {name!r}: see its documentation, e.g. CIFAR10 or Flowers102")
    data = _opened(getattr(sets, name), name, root)
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(data))[:MOST].tolist())
    titles = list(getattr(data, "classes", []))
    found = []
    for i in chosen:
        image, target = data[i]
        if not hasattr(image, "save") or not isinstance(target, int):
            raise DemoError(f"{name} is no set of pictures with one class each")
        label = str(titles[target]) if target < len(titles) else str(target)
        found.append(Picture(f"{name} {i}", label, png(image.convert("RGB"))))
    # A label that came up once can neither be trained on and tested, nor found again.
    counts = Counter(picture.label for picture in found)
    return enough([picture for picture in found if counts[picture.label] >= MIN_IMAGES], name)


def enough(pictures: list[Picture], where: str) -> list[Picture]:
    """Return the pictures. Raises DemoError unless there are two classes, and two pictures of each."""
    counts = Counter(picture.label for picture in pictures)
    if len(counts) < MIN_CLASSES:
        raise DemoError(
            f"{where} holds pictures of {len(counts)} class{'' if len(counts) == 1 else 'es'}, the demo needs"
            f" {MIN_CLASSES}: put them in one folder per class, as {where}/cat/1.jpg and {where}/dog/1.jpg"
        )
    if few := sorted(label for label, count in counts.items() if count < MIN_IMAGES):
        raise DemoError(
            f"{', '.join(few[:5])} in {where} has under {MIN_IMAGES} pictures that can be read: one is needed to"
            " learn from and another to ask with; add some, or take the folder away"
        )
    return pictures


def _sample(pictures: list[Picture], seed: int) -> list[Picture]:
    rng = np.random.default_rng(seed)
    by_class: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture)
    share = max(MIN_IMAGES, MOST // max(1, len(by_class)))
    return [of[i] for of in by_class.values() for i in sorted(rng.permutation(len(of))[:share])]


def _opened(kind: Any, name: str, root: Path) -> Any:
    """Open a data set: its constructor's parameters say what it can be told."""
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"size": 200, "image_size": (3, 64, 64), "num_classes": 4} if name == "FakeData" else {}
    if "root" in parameters:
        options["root"] = str(root)
    if "download" in parameters:
        options["download"] = True
    try:
        return kind(**options)
    except ImportError as error:
        raise DemoError(f"{name} needs {error.name}, which is not installed: pip install {error.name}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise DemoError(
            f"{name} could not be downloaded or read ({error}): check the network, or put the data set into {root},"
            " or give a folder of pictures: likewise demo PATH"
        ) from error
    except TypeError as error:
        raise DemoError(f"{name} needs to be told more than the demo can ({error})") from error
