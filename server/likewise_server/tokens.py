"""Tokens: who may call, in a small file of their own, made by `likewise tokens` and watched by a running server.

A token is `lw_<id>_<secret>`: a public id to look it up by, and 256 random bits in hex. The file has the secret's
SHA-256 only. A slow hash, bcrypt say, protects secrets that people choose and that can be guessed; nobody guesses 256
random bits, and each call would pay for it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import structlog

from likewise_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

log = structlog.get_logger()

SCOPES = ("embed", "search", "write", "train", "admin")
ANONYMOUS = "anonymous"  # what the audit log calls a caller without a token
FILE = "tokens.json"
FORMAT = 1
LOOK_S = 0.25  # how old what is known of the file may be
_TEXT = re.compile(r"lw_([0-9a-f]{12})_([0-9a-f]{64})")
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """One token, without its secret.

    `scopes`: what it may do. `collections`: patterns (`pets-*`) of the collections it may name; none: all.
    `requests_per_s`, `bytes_per_s`: its quotas; None: as much as there is. `created`: ISO 8601, UTC.
    """

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    collections: tuple[str, ...] = ()
    requests_per_s: float | None = None
    bytes_per_s: float | None = None
    created: str = ""

    def may_name(self, collection: str) -> bool:
        """Return whether it may use a collection of this name."""
        return not self.collections or any(fnmatchcase(collection, pattern) for pattern in self.collections)


class Tokens:
    """What the file says now, as a running server sees it: it looks at the file again at most every `LOOK_S` seconds.

    Tokens are required where there is a file, also one without a token left, or where `required` says so; once
    required, they stay so for the life of the server. A file that becomes unreadable changes nothing but the log.
    """

    def __init__(self, data: Path, *, required: bool = False) -> None:
        """Read the file. Raises FailedPrecondition where there is one that cannot be read."""
        self._path = data / FILE
        self._tokens: Mapping[str, Token] = {}
        self._required = required
        self._seen = _state(self._path)
        self._looked = time.monotonic()
        if self._seen is not None:
            self._tokens, self._required = _read(self._path), True
            if self._path.stat().st_mode & 0o077:
                log.warning("others may read the tokens' file", path=str(self._path), advice="chmod 600")

    def required(self) -> bool:
        """Return whether a call needs a token."""
        self._look()
        return self._required

    def get(self, token_id: str) -> Token | None:
        """Return the token of an id, None where there is none, or none any more."""
        self._look()
        return self._tokens.get(token_id)

    def find(self, text: str) -> Token | None:
        """Return the token that a caller's text is, None if it is none."""
        parts = _TEXT.fullmatch(text)
        if parts is None:
            return None
        token = self.get(parts[1])
        # An unknown id takes as long as a wrong secret.
        same = hmac.compare_digest(_hash(parts[2]), token.sha256 if token else "0" * 64)
        return token if same else None

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        state = _state(self._path)
        if state == self._seen:
            return
        self._seen = state
        if state is None:  # gone: nobody comes in until it is back
            self._tokens = {}
            log.warning("the tokens' file is gone, so no token is good", path=str(self._path))
            return
        try:
            self._tokens = _read(self._path)
        except FailedPrecondition as error:
            log.error("the tokens stay as they were", problem=error.message)  # noqa: TRY400  # the trace tells nothing
            return
        self._required = True
        log.info("tokens read", count=len(self._tokens))


def create(
    data: Path,
    name: str,
    *,
    scopes: Sequence[str],
    collections: Sequence[str] = (),
    requests_per_s: float | None = None,
    bytes_per_s: float | None = None,
) -> str:
    """Add a token and return its text, which is kept nowhere.

    Raises InvalidArgument for what makes no token, AlreadyExists for a name in use, FailedPrecondition for a file
    that cannot be read.
    """
    if not _NAME.fullmatch(name) or name == ANONYMOUS:
        raise InvalidArgument(f"{name!r} is no name for a token: use up to 64 letters, digits and . _ -")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidArgument(f"unknown scope {', '.join(unknown) or '(none)'}: give some of {', '.join(SCOPES)}")
    for what, rate in (("requests", requests_per_s), ("bytes", bytes_per_s)):
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InvalidArgument(f"{rate} {what} a second: give more than 0, or leave it out for no limit")
    if not all(collections):
        raise InvalidArgument("an empty pattern matches no collection: name one, as pets or pets-*")
    secret = secrets.token_hex(32)
    token = Token(
        id=secrets.token_hex(6),
        name=name,
        sha256=_hash(secret),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        collections=tuple(collections),
        requests_per_s=requests_per_s,
        bytes_per_s=bytes_per_s,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with _locked(data):
        tokens = listed(data)
        if any(other.name == name for other in tokens):
            raise AlreadyExists(f"there is a token {name!r} already: revoke it first, or take another name")
        _write(data, [*tokens, token])
    return f"lw_{token.id}_{secret}"


def revoke(data: Path, name: str) -> None:
    """Take a token away. Raises NotFound."""
    with _locked(data):
        tokens = listed(data)
        left = [token for token in tokens if token.name != name]
        if len(left) == len(tokens):
            raise NotFound(f"no token {name!r} in {data / FILE}: `likewise tokens list` names them")
        _write(data, left)


def listed(data: Path) -> list[Token]:
    """Return the tokens there are, oldest first. Raises FailedPrecondition for a file that cannot be read."""
    path = data / FILE
    return list(_read(path).values()) if path.exists() else []


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what differs between two versions of the file, and changes when its owner or mode does."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size


def _read(path: Path) -> dict[str, Token]:
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise FailedPrecondition(f"{path} has format {content['format']}, this version knows {FORMAT}: upgrade")
        tokens = [_token(row) for row in content["tokens"]]
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be read ({error.strerror}): give it to the server's account"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{path} is damaged ({type(error).__name__}: {error}): bring it back from a backup, or delete it and "
            "make new tokens"
        ) from error
    return {token.id: token for token in tokens}


def _token(row: dict[str, Any]) -> Token:
    token = Token(**(row | {"scopes": tuple(row["scopes"]), "collections": tuple(row["collections"])}))
    if not re.fullmatch(r"[0-9a-f]{64}", token.sha256):
        raise ValueError(f"the hash of {token.name} is none")
    return token


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Let one command at a time change the file."""
    data.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(data: Path, tokens: Sequence[Token]) -> None:
    """Replace the file by one that is whole and synced; it belongs to whoever the data directory belongs to."""
    path = data / FILE
    text = json.dumps({"format": FORMAT, "tokens": [dataclasses.asdict(token) for token in tokens]}, indent=1)
    aside = data / f".{FILE}.{os.getpid()}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever a left-over of that name had
            owner = data.stat()
            if os.geteuid() == 0 and owner.st_uid != 0:  # else a server under another account could not read it
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(data, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
