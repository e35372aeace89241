"""What can go wrong, as a tree. Every error carries gRPC's `code` name and says what to do next.

LikewiseError
├── InvalidArgument      a bad image or argument: do not retry
├── OutOfRange           an item over a limit: do not retry
├── NotFound             unknown backbone, collection, head or item
├── AlreadyExists        the name is taken by something different
├── PermissionDenied     the token lacks a scope, or is limited to other collections
├── Unauthenticated      no token, or one that the server does not know (any more)
├── FailedPrecondition   spaces or dimensions that do not match
├── ResourceExhausted    overloaded; retried already, for as long as `timeout` allowed
├── Unavailable          no server there, or one that is loading or shutting down; retried already
├── DeadlineExceeded     not done within `timeout`
├── Cancelled            given up by the caller
└── ServerError          a fault of the server; its log has the details under `request_id`
"""

from __future__ import annotations

from typing import ClassVar


class LikewiseError(Exception):
    """Anything this library raises about a request, and what stands in the `errors` of a result."""

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, request_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class InvalidArgument(LikewiseError):
    """A bad image or argument."""

    code = "INVALID_ARGUMENT"


class OutOfRange(LikewiseError):
    """An item over one of the server's limits."""

    code = "OUT_OF_RANGE"


class NotFound(LikewiseError):
    """No such backbone, collection, head, item or file."""

    code = "NOT_FOUND"


class AlreadyExists(LikewiseError):
    """The name is taken by something different."""

    code = "ALREADY_EXISTS"


class PermissionDenied(LikewiseError):
    """The token lacks a scope, or is limited to other collections."""

    code = "PERMISSION_DENIED"


class Unauthenticated(LikewiseError):
    """No token was sent, or one that the server does not know, or not any more."""

    code = "UNAUTHENTICATED"


class FailedPrecondition(LikewiseError):
    """Spaces, dimensions or states that do not match."""

    code = "FAILED_PRECONDITION"


class ResourceExhausted(LikewiseError):
    """The server is overloaded."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(LikewiseError):
    """No server answers, or it is loading or shutting down."""

    code = "UNAVAILABLE"


class DeadlineExceeded(LikewiseError):
    """Not done in time."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(LikewiseError):
    """Given up by the caller."""

    code = "CANCELLED"


class ServerError(LikewiseError):
    """A fault of the server."""

    code = "INTERNAL"


_BY_NUMBER: dict[int, type[LikewiseError]] = {
    1: Cancelled,
    3: InvalidArgument,
    4: DeadlineExceeded,
    5: NotFound,
    6: AlreadyExists,
    7: PermissionDenied,
    8: ResourceExhausted,
    9: FailedPrecondition,
    11: OutOfRange,
    13: ServerError,
    14: Unavailable,
    16: Unauthenticated,
}


def error_class(number: int) -> type[LikewiseError]:
    """Return the class of a google.rpc.Code number; LikewiseError itself for one not used here."""
    return _BY_NUMBER.get(number, LikewiseError)
