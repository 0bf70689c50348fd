"""Settings of the one-machine stack. The processes that it starts read their own settings."""

from __future__ import annotations

import os
from collections.abc import Mapping

from textmatch.runtime.settings import ClientTlsSettings, load
from textmatch.runtime.tls import ClientTls


def environment() -> Mapping[str, str]:
    """The environment that every process of the stack inherits."""
    return os.environ


def client_tls() -> ClientTls | None:
    """How to connect to encoder and matcher; None means without TLS.

    Raises:
        InvalidInput: a certificate without its key, or a key without its certificate.
    """
    return load(ClientTlsSettings, os.environ).client_tls()
