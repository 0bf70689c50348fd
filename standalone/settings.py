"""Settings of the one-machine stack. What it starts reads its own settings; these only add to them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from textmatch.runtime.settings import ClientTlsSettings, load
from textmatch.runtime.tls import ClientTls


def environment() -> Mapping[str, str]:
    """The environment that every process of the stack starts from."""
    return os.environ


def client_tls() -> ClientTls | None:
    """How to connect to encoder and matcher; None: in the clear.

    Raises:
        InvalidInput: a certificate without its key, or the other way round.
    """
    return load(ClientTlsSettings, os.environ).client_tls()
