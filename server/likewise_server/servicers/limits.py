"""What one message may hold; advertised by GetServerInfo and checked by every servicer."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message

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
    max_hits: int

    def check_items(self, count: int, what: str) -> None:
        """Raise OutOfRange for over `max_items` of something."""
        if count > self.max_items:
            raise OutOfRange(f"{count} {what} in one message, the limit is {self.max_items}: send several messages")

    def check_k(self, k: int) -> None:
        """Raise InvalidArgument unless 1 <= k <= max_k."""
        if not 1 <= k <= self.max_k:
            raise InvalidArgument(f"k is {k}: ask for 1 to {self.max_k} hits")

    def check_hits(self, queries: int, k: int) -> None:
        """Raise OutOfRange for more hits, or neighbours, than one reply should hold."""
        if queries * k > self.max_hits:
            raise OutOfRange(
                f"{queries} queries with {k} hits each are over the limit of {self.max_hits} in one reply: "
                f"send at most {max(1, self.max_hits // max(k, 1))} queries at once, or ask for fewer hits"
            )

    def check_reply(self, reply: Message) -> None:
        """Raise OutOfRange for a reply that no message can hold."""
        if reply.ByteSize() > self.max_message_bytes:
            size, limit = reply.ByteSize(), self.max_message_bytes
            raise OutOfRange(f"the answer has {size} bytes, over the limit of {limit}: ask for less at once")

    def page(self, wanted: int, *, row_bytes: int = 0) -> int:
        """Return the page size to use: at most `wanted`, at most what fits half a message."""
        if wanted < 0:
            raise InvalidArgument(f"page_size is {wanted}: use 0 for the default, or 1 to {LARGEST_PAGE}")
        size = min(wanted or DEFAULT_PAGE, LARGEST_PAGE)
        return max(1, min(size, self.max_message_bytes // 2 // row_bytes)) if row_bytes else size
