"""What the probe reads from the environment: that of the server which it asks."""

from __future__ import annotations

import os

from textmatch.runtime.settings import ClientTlsSettings, load


def from_environment() -> ClientTlsSettings:
    """How to connect.

    Raises:
        InvalidInput: a variable has a bad value.
    """
    return load(ClientTlsSettings, os.environ)
