"""TLS for servers and channels, from PEM files that may be replaced while the process runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from textmatch.errors import InvalidInput
from textmatch.runtime.file_watch import FileWatch

_log = logging.getLogger(__name__)

SYSTEM_CA = "system"

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ServerTls:
    """The certificate of a server, and which clients it accepts.

    Args:
        cert: the chain: its certificate and the intermediate ones.
        client_ca: CA that must have issued the clients' certificates; None: clients need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that read the files again: each new connection uses their current content.

        Raises:
            InvalidInput: a file cannot be read, or key and certificate do not match.
        """
        latest = LatestCertificates(self, _configuration)
        return grpc.dynamic_ssl_server_credentials(
            latest.first,
            latest.if_changed,  # type: ignore[arg-type]  # None: no change, says its documentation
            require_client_authentication=self.client_ca is not None,
        )

    def check(self) -> None:
        """Check that the files can be used.

        Raises:
            InvalidInput: a file cannot be read, or key and certificate do not match.
        """
        _check_pair(self.cert, self.key)
        if self.client_ca is not None:
            _read(self.client_ca)

    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True)
class ClientTls:
    """The CAs that a client trusts, and its own certificate.

    Args:
        ca: PEM file of the CAs, or `system` for the ones bundled with gRPC.
        cert: empty if the servers require none; needs `key`.
    """

    ca: str
    cert: str = ""
    key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials from the current content of the files.

        Raises:
            InvalidInput: a file cannot be read, or key and certificate do not match.
        """
        if self.cert:
            _check_pair(Path(self.cert), Path(self.key))
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca == SYSTEM_CA else _read(Path(self.ca)),
            private_key=_read(Path(self.key)) if self.cert else None,
            certificate_chain=_read(Path(self.cert)) if self.cert else None,
        )

    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(Path(name) for name in (self.ca, self.cert, self.key) if name not in ("", SYSTEM_CA))


class LatestCertificates(Generic[Loaded]):
    """What a server makes of its files, at the start and again each time that they are replaced.

    Args:
        load: reads the files.

    Raises:
        InvalidInput: a file cannot be used.
    """

    def __init__(self, tls: ServerTls, load: Callable[[ServerTls], Loaded]) -> None:
        self._tls = tls
        self._load = load
        self._watch = FileWatch(tls.files())
        self.first = load(tls)

    def if_changed(self) -> Loaded | None:
        """Load again if a file was replaced. None: none was, or the new ones cannot be used.

        gRPC calls it before each handshake, in its own thread.
        """
        if not self._watch.has_changed():
            return None
        try:
            loaded = self._load(self._tls)
        except (InvalidInput, OSError) as error:
            _log.error("certificate not reloaded, the old one stays in use", extra={"error": str(error)})
            return None
        _log.info("certificate reloaded", extra={"file": str(self._tls.cert)})
        return loaded


def _configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    _check_pair(tls.cert, tls.key)
    client_ca = _read(tls.client_ca) if tls.client_ca else None
    return grpc.ssl_server_certificate_configuration([(_read(tls.key), _read(tls.cert))], client_ca)


def _check_pair(cert: Path, key: Path) -> None:
    _read(cert)
    _read(key)
    try:
        # Without a password, OpenSSL would prompt for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        reason = f"{cert} and {key} must be a certificate and its key in PEM: {error.reason}"
        raise InvalidInput.of_field("TEXTMATCH_TLS_CERT", reason) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput.of_field("TEXTMATCH_TLS_*", f"{path} cannot be read: {error.strerror}") from None
