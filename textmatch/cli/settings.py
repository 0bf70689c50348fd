"""What the command line reads from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from textmatch.runtime.settings import ClientTlsSettings, load, setting

_WHERE_ELSE = "Empty: the stack of --data-dir, or if there is none"


@dataclass(frozen=True)
class CliSettings(ClientTlsSettings):
    """Where the servers are; options of a command go first."""

    matcher_target: str = setting(
        "TEXTMATCH_MATCHER_TARGET", "", f"Address of the matcher. {_WHERE_ELSE} 127.0.0.1:50052."
    )
    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET", "", f"Address of the encoder. {_WHERE_ELSE} 127.0.0.1:50051."
    )
    api_key: str = setting("TEXTMATCH_API_KEY", "", "API key for matcher and encoder.", is_secret=True)
    redis_url: str = setting(
        "TEXTMATCH_REDIS_URL",
        "",
        f"Redis with the dead letters. {_WHERE_ELSE} redis://127.0.0.1:6379/0.",
        is_secret=True,
    )
    qdrant_url: str = setting(
        "TEXTMATCH_QDRANT_URL",
        "",
        f"Qdrant's gRPC port as a URL, for `reindex` and tuning. {_WHERE_ELSE} http://127.0.0.1:6334.",
    )
    qdrant_ca: str = setting(
        "TEXTMATCH_QDRANT_CA", "", "CA to trust for an https:// Qdrant, a PEM file; empty: the usual ones."
    )
    qdrant_api_key: str = setting("TEXTMATCH_QDRANT_API_KEY", "", "API key for Qdrant.", is_secret=True)
    collection_alias: str = setting(
        "TEXTMATCH_COLLECTION_ALIAS",
        "textmatch",
        "Alias of the collection in use, for `reindex` and tuning.",
    )
    payload_indexes: str = setting(
        "TEXTMATCH_PAYLOAD_INDEXES", "", "Attributes that filters are quick on, for `reindex`."
    )


def from_environment() -> CliSettings:
    """Read the environment.

    Raises:
        InvalidInput: naming every variable with a bad value.
    """
    return load(CliSettings, os.environ)
