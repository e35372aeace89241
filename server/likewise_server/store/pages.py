"""Page tokens: where the last page ended, tied to the listing it belongs to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from likewise_server.errors import InvalidArgument

MAX_PAGE = 10_000
MAX_TOKEN = 16_384


def page_limit(page_size: int) -> int:
    """Return the number of rows for a page, at most `MAX_PAGE`; raises InvalidArgument below 1."""
    if page_size < 1:
        raise InvalidArgument(f"page_size is {page_size}; it must be at least 1.")
    return min(page_size, MAX_PAGE)


def make_token(listing: tuple[str, ...], last: list[str | int]) -> str:
    """Return the token for the page after the row with key `last`."""
    text = json.dumps([_mark(listing), *last])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_token(token: str, listing: tuple[str, ...], start: list[str | int]) -> list[str | int]:
    """Return the key to go on after, `start` for an empty token.

    Raises InvalidArgument for a token that was not made for this listing.
    """
    if not token:
        return start
    last: list[str | int]
    try:
        if len(token) > MAX_TOKEN:
            raise ValueError  # noqa: TRY301  # one answer for all that is wrong with a token
        text = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        mark, *last = json.loads(text)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        mark, last = "", []
    if mark != _mark(listing) or [type(part) for part in last] != [type(part) for part in start]:
        raise InvalidArgument(
            "The page token is not from this listing. Keep the arguments of the first call, or start anew."
        )
    return last


def _mark(listing: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
