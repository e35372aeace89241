"""JPEGs decoded in batches on a CUDA device, to the crops that a network takes.

nvJPEG's pixels are close to libjpeg's, not equal: what is decoded here has a decoding tag of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from likewise_server.errors import LikewiseError
from likewise_server.images import ImageLimits, pixels_of, plain_jpeg
from likewise_server.resizing import Preprocessing, Views, croppable, resized_crops, windows

Size = tuple[int, int]  # width, height


class NvjpegDecoder:
    """Decodes plain JPEGs by torchvision on its device, anything else by `pixels_of`. For any number of threads."""

    def __init__(self, device: torch.device | str) -> None:
        """Import torchvision, which takes a second. Raises ImportError."""
        from torchvision import io  # noqa: PLC0415  # not with every start of the server

        self.device = torch.device(device)
        self._io = io
        # It recommends another package for the same calls.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")

    def decode_many(
        self, images: Sequence[bytes], how: Preprocessing, limits: ImageLimits, views: Views = ""
    ) -> list[torch.Tensor | LikewiseError]:
        """Return for each image its (crop, crop, 3) uint8 pixels on the device, or what `pixels_of` raises.

        With `views`, (looks, crop, crop, 3), as `pixels_of` has them.

        Headers are checked first. A JPEG that is not cut short but damaged within may give pixels where
        libjpeg would complain.
        """
        found: dict[int, torch.Tensor | LikewiseError] = {}
        sizes: dict[int, Size] = {}
        for index, data in enumerate(images):
            try:
                size = plain_jpeg(data, limits)
            except LikewiseError as error:
                found[index] = error
            else:
                if size is not None and croppable(size, how):
                    sizes[index] = size
        crops = self._crops([images[index] for index in sizes], list(sizes.values()), how, views)
        found |= {index: crop for index, crop in zip(sizes, crops, strict=True) if crop is not None}
        return [found[i] if i in found else self._one(data, how, limits, views) for i, data in enumerate(images)]

    def _crops(
        self, images: list[bytes], sizes: list[Size], how: Preprocessing, views: Views
    ) -> list[torch.Tensor | None]:
        """Return the crops; None where the device refuses the image, or has no memory for it."""
        if not images:
            return []
        try:
            encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
            decoded = self._io.decode_jpeg(encoded, mode=self._io.ImageReadMode.RGB, device=self.device)
            return [self._crop(pixels, size, how, views) for pixels, size in zip(decoded, sizes, strict=True)]
        except RuntimeError:  # one refused image fails its batch: find it by halves
            if len(images) == 1:
                return [None]
            half = len(images) // 2
            first = self._crops(images[:half], sizes[:half], how, views)
            return first + self._crops(images[half:], sizes[half:], how, views)

    def _crop(self, pixels: torch.Tensor, size: Size, how: Preprocessing, views: Views) -> torch.Tensor:
        made = resized_crops(pixels.permute(1, 2, 0), size, windows(size, how, views), how)
        return torch.stack([look for crop in made for look in (crop, crop.flip(1))]) if views else made[0].contiguous()

    def _one(self, data: bytes, how: Preprocessing, limits: ImageLimits, views: Views) -> torch.Tensor | LikewiseError:
        try:
            return torch.from_numpy(pixels_of(data, how, limits, "full", views)).to(self.device)
        except LikewiseError as error:
            return error
