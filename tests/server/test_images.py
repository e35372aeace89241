"""What bytes become: checked, upright, RGB pixels, or an error that says what to do."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from likewise_server.errors import InvalidArgument, OutOfRange
from likewise_server.images import ImageLimits, Preprocessing, decode, guard, preprocess
from support.pictures import SHARED, jpeg, photographs, png

LIMITS = ImageLimits()
SQUARE = Preprocessing(resize=64, crop=64)


@pytest.fixture(autouse=True)
def _guarded() -> None:
    guard(LIMITS)


def chelsea() -> Image.Image:
    return photographs()["chelsea"].resize((96, 64))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG", "AVIF", "JPEG2000", "PPM", "TGA"])
def test_formats_give_the_same_picture(kind: str) -> None:
    assert difference(decode(encoded(chelsea(), kind), LIMITS), chelsea()) < 12


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_turned_upright(orientation: int) -> None:
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = chelsea().transpose(turns[orientation][0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(decode(jpeg(stored, 95, exif=exif), LIMITS), chelsea()) < 6


def test_sixteen_bits_are_scaled_not_clamped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = decode(encoded(Image.fromarray(ramp), "PNG"), LIMITS)
    assert np.abs(np.asarray(image)[..., 0].astype(float) - ramp / 257).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 4000.0])
def test_float_pictures_are_scaled_into_range(top: float) -> None:
    ramp = np.linspace(0, top, 64 * 64, dtype=np.float32).reshape(64, 64)
    image = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF"), LIMITS))
    assert image.min() == 0
    assert image.max() == 255


def test_cmyk_becomes_the_same_colours() -> None:
    assert difference(decode(encoded(chelsea().convert("CMYK"), "JPEG", quality=95), LIMITS), chelsea()) < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    made = encoded(image.convert(mode), "PNG", **({"transparency": 0} if mode == "P" else {}))
    assert np.asarray(decode(made, LIMITS)).min() == 255


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    made = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(made, LIMITS).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "empty"),
        (b"<html>not a picture</html>", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image|damaged"),
        (png(Image.new("RGB", (9, 9)))[:40], "damaged|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=hint):
        decode(data, LIMITS)


def test_a_jpeg_cut_short_is_refused() -> None:
    whole = jpeg(photographs()["coffee"])
    with pytest.raises(InvalidArgument, match="cut short"):
        decode(whole[: len(whole) // 2], LIMITS)


def bomb(side: int) -> bytes:
    """A PNG whose header claims side x side pixels, in a few bytes."""
    import struct  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_picture_that_claims_to_be_enormous_is_refused_before_decoding() -> None:
    with pytest.raises(OutOfRange, match=r"30000x30000|pixels"):
        decode(bomb(30_000), LIMITS)
    with pytest.raises(OutOfRange, match="pixels"):
        decode(png(Image.new("RGB", (60, 60))), ImageLimits(max_pixels=3000))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(OutOfRange, match="over the limit of 100"):
        decode(jpeg(chelsea()), ImageLimits(max_bytes=100))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (20000, 2)])
def test_extreme_shapes_still_give_a_square(size: tuple[int, int]) -> None:
    pixels = preprocess(decode(png(Image.new("RGB", size, "teal")), LIMITS), SQUARE)
    assert pixels.shape == (64, 64, 3)
    assert (pixels == pixels[0, 0]).all()


@pytest.mark.shared
def test_every_odd_file_is_decoded_or_refused_with_a_reason() -> None:
    folder = SHARED / "data/odd-files"
    refused = wrong = 0
    for row in csv.DictReader((folder / "index.csv").read_text().splitlines()):
        data = (folder / row["file"]).read_bytes()
        try:
            assert preprocess(decode(data, LIMITS), SQUARE).shape == (64, 64, 3)
        except (InvalidArgument, OutOfRange) as error:
            refused += 1
            wrong += row["pillow_decodes"] == "yes" and "supported format" not in str(error)
    assert refused < 80
    assert wrong <= 2, "files that Pillow reads must be read"


@pytest.mark.shared
def test_a_photograph_in_all_orientations_is_one_picture() -> None:
    folder = SHARED / "data/odd-files/jpeg_exif_orientation"
    upright = [decode(path.read_bytes(), LIMITS) for path in sorted(folder.glob("hopper_orientation_*.jpg"))]
    assert len(upright) >= 6
    assert len({image.size for image in upright}) == 1
    assert max(difference(image, upright[0]) for image in upright) < 8
