"""Damaged pictures, the same ones each time: mutations of intact files, and files made to cost more than they may."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from support.pictures import SHARED, jpeg, photographs, png

LARGEST = 40_000  # bytes of a file that is mutated: small ones take less time, and more of them is structure
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"


def intact() -> dict[str, bytes]:
    """Pictures in every format the server reads; where the shared material is, odd ones from there as well."""
    small = photographs()["chelsea"].resize((60, 44))
    made = dict(_encoded(small))
    folder = SHARED / "data/odd-files"
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        if path.is_file() and path.suffix != ".csv" and path.stat().st_size <= LARGEST:
            made[str(path.relative_to(folder))] = path.read_bytes()
    return made


def _encoded(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    plain = ("PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA", "SGI", "PCX", "ICNS")
    for kind in plain:
        yield kind, _saved(image, kind)
    yield "QOI", _saved(image, "QOI")
    yield "MPO", _saved(image, "MPO", save_all=True, append_images=[image])
    for options in ({}, {"progressive": True}, {"exif": exif}, {"subsampling": "4:4:4", "restart_marker_rows": 1}):
        yield f"JPEG {sorted(options)}", jpeg(image, 80, **options)
    for mode in ("L", "CMYK"):
        yield f"JPEG {mode}", jpeg(image.convert(mode))
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield f"PNG {mode}", png(Image.new(mode, (31, 23)) if mode == "I;16" else image.convert(mode))
    yield "PNG exif", png(image, exif=exif, dpi=(72, 72))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"TIFF {compression}", _saved(image, "TIFF", compression=compression)
    for mode in ("F", "I", "CMYK"):
        yield f"TIFF {mode}", _saved(image.convert(mode), "TIFF")
    yield "TIFF group4", _saved(image.convert("1"), "TIFF", compression="group4")
    yield "WEBP lossless", _saved(image.convert("RGBA"), "WEBP", lossless=True, exif=exif)
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        frames = [image.rotate(angle) for angle in (90, 180)]
        yield f"{kind} frames", _saved(image, kind, save_all=True, append_images=frames)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return `data` damaged in one to four ways; `other` is a file to take pieces from."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(WAYS)(changed, other, rng)
    return _checksummed(bytes(changed)) if data.startswith(PNG_START) and rng.random() < 0.7 else bytes(changed)


def _place(data: bytearray, rng: random.Random) -> int:
    """Return a position, in the first bytes as often as anywhere: that is where the structure is."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 160)
    return rng.randrange(end) if end else 0


def _flip(data: bytearray, _other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 30))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _noise(data: bytearray, _other: bytes, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at : at + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(1, 40))


def _length(data: bytearray, _other: bytes, rng: random.Random) -> None:
    """Write an extreme where a length, a count or a size may be."""
    at, form = _place(data, rng), rng.choice(("B", "<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    data[at : at + size] = struct.pack(form, rng.choice(EXTREMES) & (1 << 8 * size) - 1)


def _nudge(data: bytearray, _other: bytes, rng: random.Random) -> None:
    if data:
        at = _place(data, rng)
        data[at] = (data[at] + rng.choice((-2, -1, 1, 2))) % 256


def _cut(data: bytearray, _other: bytes, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _drop(data: bytearray, _other: bytes, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 300))]


def _repeat(data: bytearray, _other: bytes, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 12, 64))] * rng.choice((1, 3, 40))


def _graft(data: bytearray, other: bytes, rng: random.Random) -> None:
    at, start = _place(data, rng), rng.randrange(len(other) or 1)
    data[at:] = other[start:] if rng.random() < 0.3 else other[start : start + 64] + data[at + 64 :]


def _grow(data: bytearray, _other: bytes, rng: random.Random) -> None:
    data += rng.randbytes(rng.randrange(1, 2000))


WAYS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    *(_flip, _flip, _noise, _length, _length, _nudge, _cut, _drop, _repeat, _graft, _grow),
)


def _checksummed(data: bytes) -> bytes:
    """Put right the checksums of a PNG, so that damage gets past them."""
    made, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        made += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(made)


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, *chunks: bytes, colour: int = 2, depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def in_scans(count: int, side: int = 16) -> bytes:
    """Return a progressive JPEG of some more than `count` scans: the last one, which says nothing new, again."""
    base = jpeg(Image.new("L", (side, side)), progressive=True)
    return base[: base.rindex(b"\xff\xda")] + base[base.rindex(b"\xff\xda") : -2] * count + base[-2:]


def exif_in_pieces(count: int) -> bytes:
    """Return a JPEG whose EXIF is in so many segments."""
    return JPEG_START + _segment(0xE1, b"Exif\0\0" + b"x" * 60) * count + jpeg(Image.new("RGB", (16, 16)))[2:]


def with_chunks(count: int) -> bytes:
    """Return a PNG with so many empty chunks of no meaning before its pixels."""
    whole = png(Image.new("RGB", (16, 16)))
    return whole[:33] + chunk(b"abCd", b"") * count + whole[33:]


def _tiff(*entries: tuple[int, int, int, int], size: int = 8_000_000) -> bytes:
    made = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return (made + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)).ljust(size, b"\1")


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield files of at most a few megabytes that claim or cost far more, and what each is."""
    zeros = zlib.compress(bytes(3 * 4000 * 1200 + 1200), 9)
    yield "dimensions of a PNG", _png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", b""))
    yield "a PNG that is twice as wide as allowed", _png(20_000, 10_000, chunk(b"IDAT", zeros))
    yield "pixels that fit, of a thousandth their size", _png(4000, 1200, chunk(b"IDAT", zeros))
    yield "more data than pixels", _png(10, 10, chunk(b"IDAT", zeros * 3))
    yield "a row of a million", _png(1_000_000, 1, chunk(b"IDAT", zlib.compress(bytes(3_000_001))))
    yield "a column of a million", _png(1, 1_000_000, chunk(b"IDAT", zlib.compress(bytes(4_000_000))))
    yield (
        "text that unpacks to 200 MB",
        _png(9, 9, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))] * 2, chunk(b"IDAT", zeros)),
    )
    yield (
        "a profile that unpacks to 100 MB",
        _png(9, 9, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))), chunk(b"IDAT", zeros)),
    )
    yield "400,000 empty chunks before the pixels", with_chunks(400_000)
    yield "400,000 empty chunks of pixels", _png(9, 9, chunk(b"IDAT", b"") * 400_000, chunk(b"IDAT", zeros))
    yield "400,000 chunks after them", _png(9, 9, chunk(b"IDAT", zeros), chunk(b"abCd", b"") * 400_000)
    tail = jpeg(Image.new("RGB", (16, 16)))[2:]
    yield "a million empty segments", JPEG_START + _segment(0xEE, b"") * 1_000_000 + tail
    yield "5 MB of padding", JPEG_START + b"\xff" * 5_000_000 + tail
    yield "EXIF in 100,000 pieces", exif_in_pieces(100_000)
    yield "20,000 scans", in_scans(20_000, 1000)
    yield "a JPEG of 65,500 x 65,500", _resized_jpeg(65_500, 65_500)
    yield "a JPEG whose pixels are cut off", _resized_jpeg(2000, 1900)
    yield "2,000 tags that share 8 MB", _tiff(*((1000 + i, 3, 3_900_000, 100) for i in range(2000)))
    yield "60,000 tags", _tiff(*((2 + i, 3, 1, 100) for i in range(60_000)))
    yield "a TIFF of 10^18 pixels", _tiff((256, 4, 1, 10**9), (257, 4, 1, 10**9), size=900)
    yield "directories in a circle", b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8)
    yield "a GIF of 65,535 x 65,535", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",".ljust(60, b"\0")
    yield "400,000 comments", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!\xfe\x01a\0" * 400_000
    yield "a BMP upside down", b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 9, -(2**31), 1, 24, *[0] * 6)
    yield "a BMP of a billion", b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 40000, 40000, 1, 24, *[0] * 6)
    yield "a TGA of runs", struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 2000, 1900, 24, 0) + b"\xff\1\2\3" * 9
    yield "a PPM of 10^18", b"P6 1000000000 1000000000 255\n" + bytes(99)
    yield "a million digits", b"P3 2 2 255 " + b"9" * 1_000_000
    yield "a QOI of 10^9", b"qoif" + struct.pack(">IIBB", 40_000, 40_000, 3, 0) + b"\xfd" * 999
    yield "an SGI of 65,535", struct.pack(">HBBHHHH", 474, 1, 1, 3, 65535, 65535, 3).ljust(2000, b"\0")
    yield (
        "a PCX of runs",
        b"\n\5\1\10" + struct.pack("<HHHH", 0, 0, 1999, 1899) + bytes(52).ljust(116, b"\1") + b"\xff" * 99,
    )
    yield "an icon of icons", b"\0\0\1\0\xff\xff" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 60, 22) * 65_535
    yield "400,000 icons", b"icns" + struct.pack(">I", 8 + 8 * 400_000) + (b"ic07" + struct.pack(">I", 8)) * 400_000
    yield "a WebP of 16,384 x 16,384", b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(8)
    yield "a million tiles", _tiled(1000, 1000)
    yield (
        "a float TIFF of infinities",
        _saved(Image.fromarray(np.array([[np.inf, -np.inf, np.nan, 1e38]], np.float32)), "TIFF"),
    )


def _resized_jpeg(width: int, height: int) -> bytes:
    data = jpeg(Image.new("RGB", (64, 64)))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _tiled(width: int, height: int) -> bytes:
    """A JPEG 2000 file whose tiles are said to be of one pixel."""
    data = bytearray(_saved(Image.new("L", (width, height)), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x51") + 22
    data[at : at + 8] = struct.pack(">II", 1, 1)
    return bytes(data)
