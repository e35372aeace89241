"""Checksums of what a row says in words: SQLite has none, and a bit that flips in a text makes another text."""

from __future__ import annotations

import zlib


def checksum(*fields: object) -> int:
    """Return the CRC-32 of fields, none of which holds NUL; None is not the empty text."""
    joined = "\0".join("" if field is None else f"+{field}" for field in fields)
    return zlib.crc32(joined.encode("utf-8", "surrogatepass"))


def intact(crc: object, *fields: object) -> bool:
    """Return whether the fields are what was written; rows of the formats before 3 have no checksum, and pass."""
    return crc is None or crc == checksum(*fields)
