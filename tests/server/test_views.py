"""Several looks at a picture: the same pixels first, then mirror images and corners; one vector in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from likewise_server.backbones.base import Space
from likewise_server.engine.embedding import Embedder, Embeddings
from likewise_server.errors import DeadlineExceeded, Internal, InvalidArgument
from likewise_server.images import LOOKS, ImageLimits, Preprocessing, Views, decode, guard, pixels_of
from likewise_server.nvjpeg import NvjpegDecoder
from likewise_server.pipeline.cache import EmbeddingCache
from likewise_server.pipeline.jobs import Embedded
from likewise_server.pipeline.looks import Looks, mean_direction
from support.fakes import BAD, Rig, encoded, until
from support.pictures import jpeg, photograph_jpegs, photographs, png
from support.server import serving

LIMITS = ImageLimits()
HOW = Preprocessing(resize=160, crop=128)


@pytest.fixture(autouse=True)
def _guarded() -> None:
    guard(LIMITS)


def by_torchvision(data: bytes, how: Preprocessing) -> list[NDArray[np.uint8]]:
    """The centre and the four corners of a decoded picture, as torchvision's FiveCrop has them, mirror images after."""
    image = decode(data, LIMITS)
    *corners, centre = v2.FiveCrop(how.crop)(v2.Resize(how.resize)(image))
    return [look for crop in (centre, *corners) for look in (np.array(crop), np.array(crop)[:, ::-1])]


def apart(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


@pytest.mark.parametrize("name", ["coffee", "astronaut", "rocket"])
def test_a_png_is_looked_at_as_torchvision_does(name: str) -> None:
    data = png(photographs()[name].resize((301, 203)))
    looks = pixels_of(data, HOW, LIMITS, views="crops")
    assert looks.shape == (10, 128, 128, 3)
    assert [apart(ours, theirs) for ours, theirs in zip(looks, by_torchvision(data, HOW), strict=True)] == [0] * 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_before_its_corners_are_cut(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photographs()["coffee"].resize((300, 214)), exif=exif)
    looks = pixels_of(data, HOW, LIMITS, views="crops")
    for ours, theirs in zip(looks, by_torchvision(data, HOW), strict=True):
        assert apart(ours, theirs) <= 2


@pytest.mark.parametrize("decoding", ["scaled", "full"])
@pytest.mark.parametrize("form", ["jpeg", "png", "strip", "square"])
def test_the_first_look_is_what_there_is_without_views_and_the_second_its_mirror_image(
    form: str, decoding: Any
) -> None:
    image = photographs()["coffee"]
    data = {
        "jpeg": jpeg(image),
        "png": png(image),
        "strip": png(image.resize((900, 100))),
        "square": jpeg(image.resize((160, 160))),
    }[form]
    plain = pixels_of(data, HOW, LIMITS, decoding)
    flip = pixels_of(data, HOW, LIMITS, decoding, "flip")
    crops = pixels_of(data, HOW, LIMITS, decoding, "crops")
    assert np.array_equal(flip, [plain, plain[:, ::-1]])
    assert np.array_equal(crops[:2], flip)
    assert len({look.tobytes() for look in crops}) == 10


def test_along_a_side_as_long_as_the_crop_there_is_one_place() -> None:
    how = Preprocessing(resize=128, crop=128)
    looks = pixels_of(png(photographs()["coffee"].resize((256, 128))), how, LIMITS, views="crops")
    left, right = looks[2], looks[4]
    assert np.array_equal(looks[2], looks[6]), "top left and bottom left"
    assert np.array_equal(looks[4], looks[8])
    assert not np.array_equal(left, right)


def test_a_crop_larger_than_the_picture_is_padded_as_without_views() -> None:
    how = Preprocessing(resize=100, crop=128)
    data = png(photographs()["coffee"].resize((100, 100)))
    plain = pixels_of(data, how, LIMITS)
    looks = pixels_of(data, how, LIMITS, views="crops")
    assert all(np.array_equal(look, plain) for look in looks[::2])


def test_a_batch_decoder_looks_as_the_others_do() -> None:
    images = [*photograph_jpegs()[:3], png(photographs()["coffee"]), b"no image"]
    *results, bad = NvjpegDecoder("cpu").decode_many(images, HOW, LIMITS, "crops")
    assert isinstance(bad, InvalidArgument)
    for data, result in zip(images, results, strict=False):
        assert isinstance(result, torch.Tensor)
        assert apart(result.numpy(), pixels_of(data, HOW, LIMITS, "full", "crops")) <= 2


def test_the_mean_direction_counts_every_look_the_same_whatever_its_length() -> None:
    found = mean_direction(np.array([[3, 0], [0, 0.5]], np.float32))
    assert found == pytest.approx([2**-0.5, 2**-0.5])
    assert mean_direction(np.array([[2, 0], [0, 0]], np.float32)).tolist() == [1, 0]
    assert mean_direction(np.zeros((2, 3), np.float32)).tolist() == [0, 0, 0]


def test_the_last_look_gives_the_vector_the_times_and_what_is_kept() -> None:
    kept: list[NDArray[np.float32]] = []
    looks = Looks(2, kept.append)
    assert looks.add(Embedded(np.array([2, 0], np.float32), 0.1, 1.0, 0.25)) is None
    done = looks.add(Embedded(np.array([0, 1], np.float32), 0.1, 3.0, 0.25))
    assert isinstance(done, Embedded)
    assert done.vector == pytest.approx([2**-0.5, 2**-0.5])
    assert (done.decode_s, done.queue_s, done.forward_s) == (0.2, 2.0, 0.5)
    assert len(kept) == 1
    assert kept[0] is done.vector


@asynccontextmanager
async def embedder(tmp_path: Path, **settings: Any) -> AsyncIterator[Embedder]:
    async with serving(tmp_path / "data", **settings) as running:
        yield running.engine.embedder


@pytest.mark.parametrize("views", ["flip", "crops"])
async def test_the_vector_is_the_mean_direction_of_the_network_s_vectors_of_the_looks(
    tmp_path: Path, views: Views
) -> None:
    files = photograph_jpegs()[:3]
    async with embedder(tmp_path, max_batch=4, cache_bytes=0) as lw:
        backbone, ref = lw.resolve(None)
        plain = await lw.embed(files)
        found = await lw.embed([files[0], b"no image", *files[1:]], views=views)
        again = await lw.embed(files)
        assert list(found.errors) == [1]
        assert isinstance(found.errors[1], InvalidArgument)
        assert np.all(found.vectors[1] == 0)
        assert found.space == plain.space
        assert np.allclose(plain.vectors, again.vectors, rtol=1e-5, atol=1e-6)
        for data, vector in zip(files, found.vectors[[0, 2, 3]], strict=True):
            rows = backbone.forward(pixels_of(data, backbone.preprocessing, LIMITS, views=views), ref)
            assert len(rows) == LOOKS[views]
            expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
            expected /= np.linalg.norm(expected)
            assert vector @ expected == pytest.approx(1, abs=1e-6)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        coffee = photographs()["coffee"]
        both = [png(coffee), png(coffee.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
        one, other = directions(await lw.embed(both))
        assert directions(await lw.embed(both, views=views)).prod(axis=0).sum() > one @ other


def directions(found: Embeddings) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    return rows


async def ask(
    batcher: Any, fake: Any, *images: bytes, views: Views = "", **options: Any
) -> list[float | type[Exception]]:
    ref = fake.ref()
    outcomes = await batcher.embed(images, fake, Space(f"print of {ref}", 1, ref), views=views, **options)
    return [float(one.vector[0]) if isinstance(one, Embedded) else type(one) for one in outcomes]


async def test_what_the_cache_has_of_one_kind_of_look_answers_no_other(rig: Rig) -> None:
    batcher, fake = rig.batcher(cache=EmbeddingCache(2**20)), rig.backbone()
    [image] = encoded(7)
    for views, told in (("", 7.0), ("flip", 1.0), ("crops", 1.0), ("", 7.0), ("flip", 1.0), ("crops", 1.0)):
        assert await ask(batcher, fake, image, views=views) == [told]  # type: ignore[arg-type]  # one of Views
    assert rig.decode.begun == [7, 7, 7]
    assert sum(map(len, fake.batches)) == 1 + 2 + 10
    assert (rig.counts.hits, rig.counts.misses) == (3, 3)
    assert await ask(batcher, fake, image, views="flip", fresh=True) == [1.0]
    assert rig.decode.begun == [7] * 4, "what is measured is done anew"
    assert rig.counts.hits == 3


async def test_looks_of_many_pictures_fill_batches_that_are_no_larger_than_others(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=4), rig.backbone()
    assert await ask(batcher, fake, *encoded(1, 2, 3), views="crops") == [1, 1, 1]
    assert sum(map(len, fake.batches)) == 30
    assert max(map(len, fake.batches)) == 4


async def test_a_look_that_fails_is_its_picture_s_error_alone(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=8), rig.backbone()
    fake.broken = {2}
    assert await ask(batcher, fake, *encoded(1, 2), BAD, *encoded(3), views="flip") == [1, Internal, InvalidArgument, 1]
    assert await ask(batcher, fake, *encoded(1, 2)) == [1, Internal]


async def test_looks_that_come_too_late_are_one_error_and_those_given_up_are_not_computed(rig: Rig) -> None:
    batcher, fake = rig.batcher(max_batch=1), rig.backbone()
    fake.launching.shut()
    late = asyncio.create_task(
        ask(batcher, fake, *encoded(1), views="flip", deadline=asyncio.get_running_loop().time())
    )
    assert await late == [DeadlineExceeded]
    given_up = asyncio.create_task(ask(batcher, fake, *encoded(2), views="crops"))
    await until(lambda: fake.launching.held)
    given_up.cancel()
    fake.launching.open()
    assert await ask(batcher, fake, *encoded(3)) == [3]
    assert sum(map(len, fake.batches)) < 10


async def test_images_with_and_without_looks_are_not_decoded_together(rig: Rig) -> None:
    rig.decode.at_once = 8
    batcher, fake = rig.batcher(), rig.backbone()
    rig.decode.valve.shut()
    first = asyncio.create_task(ask(batcher, fake, *encoded(9)))
    await until(lambda: rig.decode.begun == [9])
    asked = [asyncio.create_task(ask(batcher, fake, *encoded(1, 2), views=views)) for views in ("", "flip", "")]
    await asyncio.sleep(0)
    rig.decode.valve.open()
    assert [await task for task in (first, *asked)] == [[9], [1, 2], [1, 1], [1, 2]]
