"""TLS for servers and channels, from PEM files that may be replaced while we run."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from textmatch.errors import InvalidInput

_log = logging.getLogger(__name__)

SYSTEM_CA = "system"

Signature = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ServerTls:
    """What a server shows, and whom it lets in.

    Args:
        cert: its certificate and those between it and the CA.
        client_ca: CA that clients' certificates must come from; None: clients need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files: every new connection gets what they hold by then.

        Raises:
            InvalidInput: a file cannot be read, or the key is not that of the certificate.
        """
        latest = _LatestCertificates(self)
        return grpc.dynamic_ssl_server_credentials(
            latest.first,
            latest.if_changed,  # type: ignore[arg-type]  # None: no change, says its documentation
            require_client_authentication=self.client_ca is not None,
        )

    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True)
class ClientTls:
    """Whom a client trusts, and what it shows if it is asked.

    Args:
        ca: PEM file of the CAs, or `system` for those that gRPC brings.
        cert: empty if the servers ask for none; with the key.
    """

    ca: str
    cert: str = ""
    key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """What the files hold now.

        Raises:
            InvalidInput: a file cannot be read, or the key is not that of the certificate.
        """
        if self.cert:
            _check_pair(Path(self.cert), Path(self.key))
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca == SYSTEM_CA else _read(Path(self.ca)),
            private_key=_read(Path(self.key)) if self.cert else None,
            certificate_chain=_read(Path(self.cert)) if self.cert else None,
        )

    def signature(self) -> Signature:
        """Changes whenever one of the files does."""
        return signature(Path(name) for name in (self.ca, self.cert, self.key) if name not in ("", SYSTEM_CA))


def signature(paths: Iterable[Path]) -> Signature:
    """Changes whenever one of the files does; (0, 0) for one that is not there."""
    return tuple(_signature_of(path) for path in paths)


class _LatestCertificates:
    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._signature = signature(tls.files())
        self.first = _configuration(tls)

    def if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """For gRPC, before each handshake, in a thread of its own."""
        found = signature(self._tls.files())
        if found == self._signature:
            return None
        self._signature = found
        try:
            configuration = _configuration(self._tls)
        except InvalidInput as error:
            _log.error("the certificate stays as it was", extra={"error": str(error)})
            return None
        _log.info("certificate read again", extra={"file": str(self._tls.cert)})
        return configuration


def _configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    _check_pair(tls.cert, tls.key)
    client_ca = _read(tls.client_ca) if tls.client_ca else None
    return grpc.ssl_server_certificate_configuration([(_read(tls.key), _read(tls.cert))], client_ca)


def _check_pair(cert: Path, key: Path) -> None:
    _read(cert)
    _read(key)
    try:
        # Without a password it would ask for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        reason = f"{cert} and {key} are not a certificate and its key in PEM: {error.reason}"
        raise InvalidInput.of_field("TEXTMATCH_TLS_CERT", reason) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput.of_field("TEXTMATCH_TLS_*", f"{path} cannot be read: {error.strerror}") from None


def _signature_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
