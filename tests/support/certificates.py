"""A certificate authority of the test's own, and PEM files of what it issues."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from textmatch.client import ClientTls
from textmatch.runtime.tls import ServerTls


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates for 127.0.0.1 into a folder."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._authority = trustme.CA()
        self._directory = directory
        self.file = directory / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *, is_expired: bool = False) -> Pair:
        """Write NAME.pem and NAME.key; those of that name are replaced, as a renewal does."""
        now = datetime.now(UTC)
        not_before, not_after = now - timedelta(days=9), now + timedelta(days=-1 if is_expired else 9)
        issued = self._authority.issue_cert("127.0.0.1", not_before=not_before, not_after=not_after)
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        for path, content in (
            (pair.key, issued.private_key_pem.bytes()),
            (pair.cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems)),
        ):
            unfinished = path.with_suffix(".tmp")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        return pair

    def server(self, pair: Pair, client_ca: Path | None = None) -> ServerTls:
        """Serve with this certificate."""
        return ServerTls(pair.cert, pair.key, client_ca)

    def client(self, pair: Pair | None = None) -> ClientTls:
        """Trust this authority, and show this certificate."""
        return ClientTls(str(self.file), str(pair.cert), str(pair.key)) if pair else ClientTls(str(self.file))
