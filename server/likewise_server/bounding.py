"""Files whose parts are small, but too many: what their formats allow, and what takes a reader minutes."""

from __future__ import annotations

import io
import re

import numpy as np

from likewise_server.errors import InvalidArgument

# Steps in which a file is read before its first pixel, and from there on. Pillow takes three for a chunk of a PNG, four
# for a segment of a JPEG; each costs some microseconds, and the lock that every thread wants.
MOST_TO_OPEN = 5_000
MOST_READS = 200_000
# Where Pillow decodes in Python, byte by byte or run by run: QOI, and BMP with run lengths. Some seconds' worth.
MOST_BY_BYTE = 2_000_000
BY_BYTE = frozenset({"QOI", "BMP", "DIB"})
# Passes over all pixels of one JPEG. Those of real files are about ten, and libtiff draws the line here too.
MOST_SCANS = 100
# Pillow puts the EXIF of a JPEG together piece by piece, copying what it has each time. Real files have one piece.
MOST_EXIF = 100

_EXIF = b"Exif\0\0"
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # leaves out what stands for itself in a scan: stuffing, restarts
_MARK, _START, _END, _SCANS = 0xFF, 0xD8, 0xD9, 0xDA
TOO_MANY = "the image has too many {}: save it anew with an ordinary program"


class Bounded(io.BytesIO):
    """An encoded image that can be read in so many steps, and so many pieces of EXIF, and no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left, self._exif = MOST_TO_OPEN, MOST_EXIF

    def opened(self, form: str | None) -> None:
        """Let the pixels be read as well, of a file in what Pillow calls a `format`."""
        self._left += MOST_BY_BYTE if form in BY_BYTE else MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does. Raises InvalidArgument after too many times."""
        self._left -= 1
        if self._left < 0:
            raise InvalidArgument(TOO_MANY.format("parts"))
        piece = super().read(size)
        if piece.startswith(_EXIF):
            self._exif -= 1
            if self._exif < 0:
                raise InvalidArgument(TOO_MANY.format("pieces of EXIF"))
        return piece


def check_jpeg(data: bytes) -> None:
    """Raise InvalidArgument for a JPEG that libjpeg would pass over too often."""
    # NumPy is several times as fast as bytes.count(), and does not hold the interpreter's lock.
    each = np.frombuffer(data, np.uint8)
    # What follows a picture in its file, such as a film, may hold the two bytes by chance.
    if np.count_nonzero((each[:-1] == _MARK) & (each[1:] == _SCANS)) > MOST_SCANS and _scans(data) > MOST_SCANS:
        raise InvalidArgument(TOO_MANY.format("scans"))


def _scans(data: bytes) -> int:
    """Return how many scans there are up to the end of the picture; stops counting past MOST_SCANS."""
    at = found = 0
    while found <= MOST_SCANS and (match := _MARKER.search(data, at)):
        marker, at = data[match.end() - 1], match.end()
        if marker == _END:
            break
        found += marker == _SCANS
        at += 0 if marker == _START else int.from_bytes(data[at : at + 2])
    return found
