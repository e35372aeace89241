"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from likewise_training.commands import Report
from support.pictures import digit_images

Run: TypeAlias = Callable[..., Report]


def write_digits(folder: Path, per_class: int, classes: int) -> Path:
    """Write pictures of digits into class folders of `folder`, and return it."""
    for number, (data, label) in enumerate(zip(*digit_images(per_class, classes), strict=True)):
        path = folder / label / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
