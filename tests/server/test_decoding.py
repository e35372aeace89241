"""The quick way from bytes to crops gives what Pillow's way gives: the same pixels, the same refusals."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from likewise_server import images
from likewise_server.backbones import registry
from likewise_server.errors import LikewiseError, OutOfRange
from likewise_server.images import (
    Decoding,
    ImageLimits,
    Preprocessing,
    decode,
    decoding_tag,
    guard,
    pixels_of,
    preprocess,
)
from support.pictures import SHARED, jpeg, photograph_jpegs, photographs, png

LIMITS = ImageLimits()
HOW = Preprocessing(resize=256, crop=224)
Pixels = NDArray[np.uint8]
TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def _guarded() -> None:
    guard(LIMITS)


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what was decoded by Pillow."""
    seen: list[int] = []
    loaded = images._loaded

    def counted(image: Image.Image, limits: ImageLimits) -> Image.Image:
        seen.append(1)
        return loaded(image, limits)

    monkeypatch.setattr(images, "_loaded", counted)
    return seen


def pillows(data: bytes, how: Preprocessing = HOW) -> Pixels:
    return preprocess(decode(data, LIMITS), how)


def apart(a: Pixels, b: Pixels) -> tuple[int, float]:
    """The largest and the mean difference, in levels."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return int(difference.max()), float(difference.mean())


def outcome(work: Callable[[], Pixels]) -> tuple[str, str]:
    try:
        return "pixels", str(work().shape)
    except LikewiseError as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_decoded_pixels_equal_pillows(subsampling: str, options: dict[str, object]) -> None:
    for name, image in photographs().items():
        part = image.crop((0, 0, min(image.width, 301), min(image.height, 203)))
        data = jpeg(part, 85, subsampling=subsampling, **options)
        quick = images._quick(data, Image.open(io.BytesIO(data)), 1)
        assert quick is not None, name
        assert np.array_equal(quick, np.asarray(decode(data, LIMITS))), name


@pytest.mark.shared
def test_decoded_pixels_equal_pillows_on_real_files() -> None:
    files = sorted((SHARED / "data/imagenet-sample").glob("*.JPEG"))
    quick_ones = 0
    for path in files:
        data = path.read_bytes()
        quick = images._quick(data, Image.open(io.BytesIO(data)), 1)
        if quick is not None:
            quick_ones += 1
            assert np.array_equal(quick, np.asarray(decode(data, LIMITS))), path.name
    assert quick_ones >= 0.95 * len(files)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (342, 299), (224, 224), (240, 240)])
def test_crops_equal_torchvisions_within_two_levels(interpolation: str, resize: int, crop: int) -> None:
    mode = v2.InterpolationMode(interpolation)
    preset = v2.Compose([v2.Resize(resize, interpolation=mode), v2.CenterCrop(crop)])
    how = Preprocessing(resize, crop, interpolation=interpolation)
    means: list[float] = []
    for data in photograph_jpegs(320) + photograph_jpegs(500):
        made = pixels_of(data, how, LIMITS, "full")
        assert made.flags.c_contiguous
        assert made.flags.writeable
        largest, mean = apart(made, np.asarray(preset(decode(data, LIMITS))))
        assert largest <= 2
        assert mean < 0.05
        means.append(mean)
    assert np.mean(means) < 0.01  # nearly all of it from scales like 4/3, where sums lie half way between levels


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 31), (224, 224), (256, 256), (240, 320), (1, 300), (4000, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_small_and_odd_shapes(size: tuple[int, int], interpolation: str) -> None:
    data = jpeg(photographs()["coffee"].resize(size))
    for how in (Preprocessing(256, 224, interpolation=interpolation), Preprocessing(100, 120)):
        largest, mean = apart(pixels_of(data, how, LIMITS, "full"), pillows(data, how))
        assert largest <= 2
        assert mean < 0.02


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("decoding", ["full", "scaled"])
@pytest.mark.parametrize("size", [(401, 263), (263, 402)])  # odd, so that the crop's corner is rounded
def test_exif_orientation_is_pillows(orientation: int, decoding: Decoding, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photographs()["astronaut"].resize(size), exif=exif)
    largest, mean = apart(pixels_of(data, HOW, LIMITS, decoding), pillows(data))
    assert largest <= 2
    assert mean < 0.2  # rows first or columns first: a value in five is rounded otherwise


def test_orientation_in_xmp_is_honoured() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = jpeg(photographs()["astronaut"].resize((401, 263)), xmp=xmp)
    assert not np.array_equal(pillows(data), pillows(jpeg(photographs()["astronaut"].resize((401, 263)))))
    assert apart(pixels_of(data, HOW, LIMITS), pillows(data))[0] <= 2


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["grey", "cmyk", "png", "webp", "mpo"])
def test_what_is_no_plain_jpeg_is_pillows_to_the_pixel(kind: str, by_pillow: list[int]) -> None:
    image = photographs()["coffee"].resize((320, 240))
    data = {
        "grey": lambda: jpeg(image.convert("L")),
        "cmyk": lambda: encoded(image.convert("CMYK"), "JPEG"),
        "png": lambda: png(image),
        "webp": lambda: encoded(image, "WEBP"),
        "mpo": lambda: encoded(image, "MPO", save_all=True, append_images=[image]),
    }[kind]()
    made = pixels_of(data, HOW, LIMITS)
    assert by_pillow
    assert np.array_equal(made, pillows(data))


@pytest.mark.parametrize("option", ["optimize", "progressive", "keep_rgb"])
def test_colour_jpegs_do_not_pass_through_pillow(option: str, by_pillow: list[int]) -> None:
    pixels_of(jpeg(photographs()["coffee"], 90, **{option: True}), HOW, LIMITS)
    assert not by_pillow


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_jpegs_are_refused_in_the_same_words(progressive: bool) -> None:
    whole = jpeg(photographs()["coffee"].resize((200, 150)), progressive=progressive)
    rng = np.random.default_rng(0)
    refused = 0
    for cut in [*rng.integers(2, len(whole), 40), len(whole) - 1, len(whole) - 2]:
        for data in (whole[:cut], whole[:cut] + b"\xff\xd9"):
            told = outcome(lambda data=data: pixels_of(data, HOW, LIMITS, "full"))  # type: ignore[misc]
            assert told == outcome(lambda data=data: pillows(data))  # type: ignore[misc]
            refused += told[0] != "pixels"
    assert refused >= 30
    for at in rng.integers(2, len(whole), 80):
        flipped = whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :]
        told = outcome(lambda data=flipped: pixels_of(data, HOW, LIMITS, "full"))  # type: ignore[misc]
        assert told == outcome(lambda data=flipped: pillows(data))  # type: ignore[misc]
        if told[0] == "pixels":
            assert apart(pixels_of(flipped, HOW, LIMITS, "full"), pillows(flipped))[0] <= 2


@pytest.mark.shared
@pytest.mark.parametrize("decoding", ["full", "scaled"])
def test_every_odd_file_has_the_outcome_it_has_by_pillow(decoding: Decoding) -> None:
    folder = SHARED / "data/odd-files"
    for row in csv.DictReader((folder / "index.csv").read_text().splitlines()):
        data = (folder / row["file"]).read_bytes()
        told = outcome(lambda data=data: pixels_of(data, HOW, LIMITS, decoding))  # type: ignore[misc]
        assert told == outcome(lambda data=data: pillows(data)), row["file"]  # type: ignore[misc]
        if told[0] == "pixels":
            mean = apart(pixels_of(data, HOW, LIMITS, decoding), pillows(data))[1]
            assert mean < (0.2 if decoding == "full" else 0.6), row["file"]


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2) + width.to_bytes(2) + data[at + 4 :]


def test_limits_hold_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(photographs()["coffee"])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    monkeypatch.setattr(images, "_loaded", never)
    for decoding in ("scaled", "full"):
        with pytest.raises(OutOfRange, match="pixels"):
            pixels_of(claiming(data, 60_000, 60_000), HOW, LIMITS, decoding)
        with pytest.raises(OutOfRange, match="over the limit of 1000 pixels"):
            pixels_of(data, HOW, ImageLimits(max_pixels=1000), decoding)
        with pytest.raises(OutOfRange, match="over the limit of 100: "):
            pixels_of(data, HOW, ImageLimits(max_bytes=100), decoding)


def test_readers_that_see_different_sizes_leave_it_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(photographs()["coffee"])
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda *_: (60_000, 60_000, "YCbCr", "420"))
    assert np.array_equal(pixels_of(data, HOW, LIMITS), pillows(data))


def large(name: str, short: int) -> bytes:
    image = photographs()[name]
    scale = short / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    return jpeg(image.resize(size, Image.Resampling.LANCZOS), subsampling="4:2:0")


def test_only_large_jpegs_are_decoded_scaled() -> None:
    just_under, just_over = large("coffee", 1791), large("coffee", 1792)
    assert np.array_equal(pixels_of(just_under, HOW, LIMITS, "scaled"), pixels_of(just_under, HOW, LIMITS, "full"))
    assert not np.array_equal(pixels_of(just_over, HOW, LIMITS, "scaled"), pixels_of(just_over, HOW, LIMITS, "full"))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_scaled_decoding_leaves_vectors_where_they_are(name: str) -> None:
    backbone = registry.load(name, weights_dir=SHARED / "weights", device=torch.device("cpu"), precision="fp32")
    files = [large(photo, short) for photo in ("coffee", "chelsea", "rocket") for short in (1793, 3590)]
    files.append((SHARED / "data/odd-files/jpeg_exif_orientation/Landscape_6.jpg").read_bytes())
    how = Preprocessing(160, 160)  # makes the last one large
    vectors = {}
    for mode in ("scaled", "full"):
        crops = [pixels_of(data, HOW, LIMITS, mode) for data in files[:-1]]
        made = backbone.forward(np.stack(crops), backbone.ref())
        last = backbone.forward(pixels_of(files[-1], how, LIMITS, mode)[None], backbone.ref())
        together = np.concatenate([made, last])
        vectors[mode] = together / np.linalg.norm(together, axis=1, keepdims=True)
    assert (vectors["scaled"] * vectors["full"]).sum(axis=1).min() >= 0.999


def test_modes_have_tags_of_their_own() -> None:
    assert decoding_tag("scaled") != decoding_tag("full")


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc, which this system has not")
def test_the_resize_starts_no_threads() -> None:
    """A thread that calls torch for the first time brings a pool of its own if it needs one."""
    data = jpeg(photographs()["coffee"].resize((3000, 2000)))
    added: list[int] = []

    def run() -> None:
        before = len(list(TASKS.iterdir()))
        pixels_of(data, HOW, LIMITS, "full")
        added.append(len(list(TASKS.iterdir())) - before)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert added == [0]
