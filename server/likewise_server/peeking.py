"""How many pixels an encoded image has, by its first bytes: to decide what may be decoded at one time.

The answer is what the header claims, not a judgement: limits are checked, and damage is found, where it is decoded.
"""

from __future__ import annotations

import struct

PIXELS_PER_BYTE = 8  # photographs in AVIF, JPEG 2000 or TIFF take a bit for each pixel, or more
# As many as there are in 32 MB of colour profile. libjpeg has no such bound: to search that much of a
# hostile file for the next segment takes it 0.1 s, and this runs on the event loop.
MOST_SEGMENTS = 520
LONGEST_JUNK = 4096  # bytes between two segments

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers in whose segments the size is
_BARE = frozenset((0x00, 0x01, 0xFF, *range(0xD0, 0xD9)))  # the markers without a segment
_OS2 = 12  # length of the BMP header that has 16-bit sizes


def peek_pixels(data: bytes) -> int:
    """Return width x height as the header of a JPEG, PNG, GIF, BMP or WebP claims, in microseconds.

    Anything else, and a header that cannot be read, counts PIXELS_PER_BYTE. Never raises; the number may be
    enormous, or 0.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _product(">II", data, 16)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _product("<HH", data, 6)
        if data.startswith(b"BM"):
            return _product("<HH" if data[14] == _OS2 else "<ii", data, 18)
        if data.startswith(b"RIFF") and data.startswith(b"WEBP", 8):
            return _webp(data)
    except (ValueError, IndexError, struct.error):
        pass
    return PIXELS_PER_BYTE * len(data)


def _product(form: str, data: bytes, at: int) -> int:
    a, b = struct.unpack_from(form, data, at)
    return abs(int(a) * int(b))  # the height of a BMP stored from the top down is negative


def _jpeg(data: bytes) -> int:
    at = 2
    for _ in range(MOST_SEGMENTS):
        at = data.index(b"\xff", at, at + LONGEST_JUNK)
        marker = data[at + 1]
        if marker in _FRAMES:
            return _product(">HH", data, at + 5)
        at += 1 if marker in _BARE else 2 + int.from_bytes(data[at + 2 : at + 4])
    raise ValueError


def _webp(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        return (int.from_bytes(data[26:28], "little") & 0x3FFF) * (int.from_bytes(data[28:30], "little") & 0x3FFF)
    raise ValueError
