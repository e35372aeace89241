"""What one message may hold; advertised by GetServerInfo and checked by every servicer."""

from __future__ import annotations

from dataclasses import dataclass

from likewise_server.errors import InvalidArgument, OutOfRange

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """See the fields of the same names in settings.py."""

    max_message_bytes: int
    max_items: int
    max_image_bytes: int
    max_pixels: int
    max_k: int
    stream_window: int

    def check_items(self, count: int, what: str) -> None:
        """Raise OutOfRange for over `max_items` of something."""
        if count > self.max_items:
            raise OutOfRange(f"{count} {what} in one message, the limit is {self.max_items}: send several messages")

    def check_k(self, k: int) -> None:
        """Raise InvalidArgument unless 1 <= k <= max_k."""
        if not 1 <= k <= self.max_k:
            raise InvalidArgument(f"k is {k}: ask for 1 to {self.max_k} hits")

    def page(self, wanted: int, *, row_bytes: int = 0) -> int:
        """Return the page size to use: at most `wanted`, at most what fits half a message."""
        if wanted < 0:
            raise InvalidArgument(f"page_size is {wanted}: use 0 for the default, or 1 to {LARGEST_PAGE}")
        size = min(wanted or DEFAULT_PAGE, LARGEST_PAGE)
        return max(1, min(size, self.max_message_bytes // 2 // row_bytes)) if row_bytes else size
