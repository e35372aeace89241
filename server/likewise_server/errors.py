"""Errors carry their code; one interceptor turns them into statuses, one function into per-item errors.

LikewiseError
├── InvalidArgument      a bad image or argument: do not retry
├── OutOfRange           an item over a size limit: do not retry
├── NotFound             unknown backbone, collection, head or item
├── AlreadyExists        the name is taken by something different
├── PermissionDenied     the token lacks a scope, or is limited to other collections
├── Unauthenticated      no token, or one that is not known (any more)
├── FailedPrecondition   spaces or dimensions that do not match
├── ResourceExhausted    overloaded: retry after `retry_after_s`
├── Unavailable          draining or loading: retry
├── DeadlineExceeded     expired before the work began
└── Internal             our bug: the caller gets a fixed text, the log the details
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The subset of google.rpc.Code in use, with its numbers."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class LikewiseError(Exception):
    """An error whose message is fit for the caller: it says what to do next."""

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidArgument(LikewiseError):
    """A bad image or argument."""

    code = Code.INVALID_ARGUMENT


class OutOfRange(LikewiseError):
    """An item over one of the advertised limits."""

    code = Code.OUT_OF_RANGE


class NotFound(LikewiseError):
    """No such backbone, collection, head or item."""

    code = Code.NOT_FOUND


class AlreadyExists(LikewiseError):
    """The name is taken by something different."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(LikewiseError):
    """The token lacks a scope, or is limited to other collections; the message names it."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(LikewiseError):
    """No token came, or one that is not known, or not any more."""

    code = Code.UNAUTHENTICATED


class FailedPrecondition(LikewiseError):
    """Spaces, dimensions or states that do not match; the message names both sides."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(LikewiseError):
    """Overloaded; `retry_after_s` (seconds) says when to come back."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(LikewiseError):
    """Draining or still loading."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(LikewiseError):
    """The caller's deadline passed before the work began."""

    code = Code.DEADLINE_EXCEEDED


class Internal(LikewiseError):
    """A fault of the server; details are in its log only."""

    code = Code.INTERNAL
