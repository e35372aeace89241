"""TLS for the server's port, from files that may be replaced while it runs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from likewise_server.errors import FailedPrecondition

log = structlog.get_logger()

State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files: the server's certificate chain, its key, and the authorities whose clients are let in, if any."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, client_ca: Path | None) -> Files | None:
        """Return the files, None where none is given. Raises FailedPrecondition for half of what is needed."""
        if cert is None and key is None and client_ca is None:
            return None
        if cert is None or key is None:
            raise FailedPrecondition("TLS needs both --tls-cert and --tls-key: give the other one as well")
        return cls(cert, key, client_ca)

    def state(self) -> State:
        """Return what changes when one of the files does. Raises OSError."""
        found = [path.stat() for path in (self.cert, self.key, self.client_ca) if path is not None]
        return tuple((each.st_ino, each.st_ctime_ns, each.st_size) for each in found)

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Return what gRPC wants. Raises OSError and ValueError where the files are not a certificate and its key."""
        # gRPC would notice a key that does not fit only at the first handshake.
        proof = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        proof.load_cert_chain(self.cert, self.key, password="")  # an encrypted key is an error, not a question
        authorities = self.client_ca.read_bytes() if self.client_ca else None
        if authorities is not None:
            proof.load_verify_locations(cadata=authorities.decode("ascii"))
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)


def server_credentials(files: Files) -> grpc.ServerCredentials:
    """Return credentials that follow the files: a new connection gets what they say then.

    With `client_ca`, clients need a certificate of one of these authorities. Files that are broken, or half replaced,
    keep what was good before, and the log says so. Raises FailedPrecondition where they are broken now.
    """
    try:
        seen = files.state()
        first = files.read()
    except (OSError, ValueError) as error:
        raise FailedPrecondition(
            f"TLS cannot be set up ({_reason(error)}): --tls-cert and --tls-key need a certificate in PEM and its key, "
            "unencrypted, and --tls-client-ca certificates in PEM"
        ) from error
    log.info("tls", cert=str(files.cert), clients_need_certificates=files.client_ca is not None)
    return grpc.dynamic_ssl_server_credentials(
        first,
        _Following(files, seen).changed,  # type: ignore[arg-type]  # None is no change, says its documentation
        require_client_authentication=files.client_ca is not None,
    )


class _Following:
    """Looks at the files before each handshake."""

    def __init__(self, files: Files, seen: State | None) -> None:
        self._files = files
        self._seen = seen

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, None while there is none that is whole. Called by gRPC, from its threads."""
        try:
            state = self._files.state()
            if state == self._seen:
                return None
            found = self._files.read()
            if self._files.state() != state:
                return None  # replaced while it was read: the next handshake looks again
        except (OSError, ValueError) as error:
            self._complain(error)
            return None
        self._seen = state
        log.info("tls certificate replaced", cert=str(self._files.cert))
        return found

    def _complain(self, error: Exception) -> None:
        try:
            self._seen = self._files.state()  # once for each state of the files
        except OSError:
            self._seen = None
        log.error("tls goes on with the certificate it had", problem=_reason(error))


def _reason(error: Exception) -> str:
    # The path, or OpenSSL's word for what is wrong; never what is in the files.
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
