"""How a connection is protected and who calls: TLS and a token, from arguments or from the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from likewise.errors import InvalidArgument, NotFound

PUBLIC = "public"
YES = ("1", "true", "yes", "on")


@dataclass(frozen=True, slots=True)
class Security:
    """What a channel needs: PEM texts, None where there are none, and the token, empty for none."""

    tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)

    @classmethod
    def of(
        cls,
        address: str,
        *,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        token: str | None = None,
        insecure: bool | None = None,
    ) -> Security:
        """Read what is given; None is looked up in the environment, an empty text is none.

        `ca`: PEM file of the authorities that the server's certificate may be of, or "public" for those that gRPC
        comes with; with it the connection is TLS. `cert`, `key`: PEM files, for servers that want a certificate.
        `token`: sent with each call. `insecure`: send it also to other machines without TLS. The environment has
        LIKEWISE_CA, LIKEWISE_CERT, LIKEWISE_KEY, LIKEWISE_TOKEN or the file LIKEWISE_TOKEN_FILE, LIKEWISE_INSECURE.
        Raises InvalidArgument for what does not go together, NotFound for files that cannot be read.
        """
        ca = _or_environment(ca, "LIKEWISE_CA")
        cert = _or_environment(cert, "LIKEWISE_CERT")
        key = _or_environment(key, "LIKEWISE_KEY")
        if bool(cert) != bool(key):
            raise InvalidArgument("a certificate goes with its key: give both cert and key, or neither")
        if cert and not ca:
            raise InvalidArgument(f"a certificate needs TLS: give ca, a PEM file or {PUBLIC!r}, as well")
        token = _token(token)
        if token and not ca and not _is_local(address) and not (_insecure() if insecure is None else insecure):
            raise InvalidArgument(
                f"the token would cross the network to {address} unprotected: give ca, the PEM file of the server's "
                f"authority or {PUBLIC!r}, or say insecure=True (LIKEWISE_INSECURE=1) where the network is protected"
            )
        return cls(
            tls=bool(ca),
            ca=_read(ca) if ca and ca != PUBLIC else None,
            cert=_read(cert) if cert else None,
            key=_read(key) if key else None,
            token=token,
        )

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """Return a channel to the server at `address`."""
        if not self.tls:
            return grpc.aio.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(self.ca, self.key, self.cert)
        return grpc.aio.secure_channel(address, credentials, options=options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what to send with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def _or_environment(value: str | os.PathLike[str] | None, name: str) -> str:
    return os.environ.get(name, "") if value is None else os.fspath(value)


def _token(given: str | None) -> str:
    text = os.environ.get("LIKEWISE_TOKEN", "") if given is None else given
    path = os.environ.get("LIKEWISE_TOKEN_FILE", "")
    if given is None and not text and path:
        text = _read(path).decode(errors="replace")
    text = text.strip()
    if not text.isascii() or not text.isprintable():
        raise InvalidArgument("the token is no text of letters, digits and _: was it copied as a whole?")
    return text


def _insecure() -> bool:
    return os.environ.get("LIKEWISE_INSECURE", "").lower() in YES


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read ({error.strerror})") from error


def _is_local(address: str) -> bool:
    """Return whether an address stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition("/")[2].removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
    host = host.rpartition(":")[0] if host.count(":") == 1 or "]" in host else host
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
