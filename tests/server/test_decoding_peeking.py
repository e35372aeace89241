"""The size that a header claims, without decoding."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from likewise_server.images import peek_pixels
from likewise_server.peeking import MOST_SEGMENTS, PIXELS_PER_BYTE
from support.pictures import SHARED

READ = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP")
# A first frame that overhangs its own screen; the screen is what the header has.
OVERHANGING = ("issue_1455_oversized.gif", "oob.gif")


def encoded(kind: str, size: tuple[int, int], **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (640, 480)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "icc_profile": bytes(400_000), "comment": b"long" * 9000}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": False}),
        ("WEBP", {"exif": b"Exif\0\0"}),
    ],
)
def test_sizes_are_read_from_headers(kind: str, options: dict[str, object], size: tuple[int, int]) -> None:
    assert peek_pixels(encoded(kind, size, **options)) == size[0] * size[1]


def test_other_formats_are_taken_for_so_many_pixels_a_byte() -> None:
    data = encoded("TIFF", (64, 48))
    assert peek_pixels(data) == PIXELS_PER_BYTE * len(data)
    assert peek_pixels(b"") == 0


@pytest.mark.shared
def test_every_odd_file_has_the_size_that_pillow_reads() -> None:
    folder = SHARED / "data/odd-files"
    read = 0
    for row in csv.DictReader((folder / "index.csv").read_text().splitlines()):
        data = (folder / row["file"]).read_bytes()
        peeked = peek_pixels(data)
        if row["format"] in READ and not row["file"].endswith(OVERHANGING):
            assert peeked == int(row["width"]) * int(row["height"]), row["file"]
            read += 1
        assert peeked >= 0
    assert read >= 100


@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"])
)
def test_nothing_makes_it_raise(data: bytes, start: bytes) -> None:
    assert peek_pixels(start + data) >= 0
    assert peek_pixels(b"RIFF\0\0\0\0WEBPVP8" + data) >= 0


class Counting(bytes):
    """Bytes that count how often they are searched for a marker."""

    searched = 0

    def index(self, *where: Any) -> int:
        self.searched += 1
        return super().index(*where)


@pytest.mark.parametrize("body", [b"\xff\xe1\x00\x02", b"\xff\xd0", b"\xff", b"\x00", b"\xff\xe1\x00\x00"])
def test_the_search_for_a_size_is_bounded(body: bytes) -> None:
    data = Counting(b"\xff\xd8\xff\xe0\x00\x04ab" + body * 500_000)
    assert peek_pixels(data) == PIXELS_PER_BYTE * len(data)
    assert data.searched <= MOST_SEGMENTS
