"""Batches of JPEGs on a device; without one, who decodes what, with torchvision's own decoder on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from likewise_server import nvjpeg
from likewise_server.errors import InvalidArgument, LikewiseError, OutOfRange
from likewise_server.images import ImageLimits, Preprocessing, guard, pixels_of, plain_jpeg
from likewise_server.nvjpeg import NvjpegDecoder
from support.pictures import jpeg, photograph_jpegs, photographs, png

LIMITS = ImageLimits()
HOW = Preprocessing(resize=256, crop=224)


@pytest.fixture(autouse=True)
def _guarded() -> None:
    guard(LIMITS)


@pytest.fixture
def by_cpu(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was handed to `pixels_of`."""
    seen: list[bytes] = []

    def spied(data: bytes, *rest: object) -> object:
        seen.append(data)
        return pixels_of(data, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(nvjpeg, "pixels_of", spied)
    return seen


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(photographs()["coffee"], exif=exif)


def tensors(results: list[torch.Tensor | LikewiseError]) -> Iterator[torch.Tensor]:
    for result in results:
        assert isinstance(result, torch.Tensor)
        yield result


def test_plain_jpegs_go_to_the_device_and_the_rest_to_the_cpu(by_cpu: list[bytes]) -> None:
    image = photographs()["coffee"]
    plain = photograph_jpegs(500)[:3]
    others = [png(image), jpeg(image.convert("L")), jpeg(image, progressive=True), turned(), jpeg(image)[:-2]]
    others += [jpeg(image, keep_rgb=True), jpeg(image.convert("CMYK")), jpeg(image.resize((900, 90)))]
    mixed = [plain[0], others[0], plain[1], *others[1:], plain[2], b"no image", jpeg(image)[:9000]]
    results = NvjpegDecoder("cpu").decode_many(mixed, HOW, LIMITS)
    assert isinstance(results[-2], InvalidArgument)
    assert isinstance(results[-1], InvalidArgument)
    assert set(plain).isdisjoint(by_cpu)
    assert set(others) < set(by_cpu)
    for data, result in zip(mixed, results, strict=True):
        if isinstance(result, torch.Tensor):
            assert result.shape == (224, 224, 3)
            assert result.is_contiguous()
            difference = np.abs(result.numpy().astype(int) - pixels_of(data, HOW, LIMITS, "full"))
            assert difference.max() <= 2
        else:
            with pytest.raises(type(result)):
                pixels_of(data, HOW, LIMITS)


def test_one_image_that_the_device_refuses_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, by_cpu: list[bytes]
) -> None:
    decoder = NvjpegDecoder("cpu")
    images = photograph_jpegs(500)[:7]
    refused = torch.frombuffer(bytearray(images[4]), dtype=torch.uint8)
    decode = decoder._io.decode_jpeg

    def choosy(encoded: list[torch.Tensor], **options: object) -> object:
        if any(torch.equal(one, refused) for one in encoded):
            raise RuntimeError("nvjpegDecode failed: 8")
        return decode(encoded, **options)

    monkeypatch.setattr(decoder._io, "decode_jpeg", choosy)
    results = decoder.decode_many(images, HOW, LIMITS)
    assert by_cpu == [images[4]]
    for data, result in zip(images, tensors(results), strict=True):
        assert np.abs(result.numpy().astype(int) - pixels_of(data, HOW, LIMITS, "full")).max() <= 2


def test_limits_hold_before_the_device_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = NvjpegDecoder("cpu")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(decoder._io, "decode_jpeg", never)
    results = decoder.decode_many([jpeg(photographs()["coffee"]), b""], HOW, ImageLimits(max_pixels=1000))
    assert isinstance(results[0], OutOfRange)
    assert isinstance(results[1], InvalidArgument)
    assert decoder.decode_many([], HOW, LIMITS) == []


def test_plain_is_upright_baseline_and_whole() -> None:
    image = photographs()["coffee"]
    assert plain_jpeg(jpeg(image), LIMITS) == image.size
    assert plain_jpeg(turned(), LIMITS) is None
    assert plain_jpeg(jpeg(image)[:-9], LIMITS) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_nearly_the_same_crops() -> None:
    decoder = NvjpegDecoder("cuda")
    images = [*photograph_jpegs(500), png(photographs()["coffee"]), turned()]
    for data, result in zip(images, tensors(decoder.decode_many(images, HOW, LIMITS)), strict=True):
        assert result.device.type == "cuda"
        difference = np.abs(result.cpu().numpy().astype(int) - pixels_of(data, HOW, LIMITS, "full"))
        assert difference.mean() < 2
