"""Settings of the command line."""

from __future__ import annotations

from dataclasses import dataclass

from textmatch.client.settings import ClientSettings
from textmatch.collection_config import DEFAULT_COLLECTION
from textmatch.runtime.settings import ClientTlsSettings, installation_setting, setting

_DEFAULT = "Default: the local stack, or else"


@dataclass(frozen=True)
class CliSettings(ClientSettings, ClientTlsSettings):
    """Addresses and credentials of the servers. Options of a command take precedence."""

    matcher_target: str = setting(
        "TEXTMATCH_MATCHER_TARGET", "", f"Address of the matcher. {_DEFAULT} 127.0.0.1:50052."
    )
    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET", "", f"Address of the encoder. {_DEFAULT} 127.0.0.1:50051."
    )
    redis_url: str = setting(
        "TEXTMATCH_REDIS_URL",
        "",
        f"URL of Redis, for `reindex` and `tune`. {_DEFAULT} redis://127.0.0.1:6379/0.",
        is_secret=True,
    )
    qdrant_url: str = setting(
        "TEXTMATCH_QDRANT_URL",
        "",
        f"URL of Qdrant's gRPC port, for `reindex` and `tune`. {_DEFAULT} http://127.0.0.1:6334.",
    )
    qdrant_ca: str = setting(
        "TEXTMATCH_QDRANT_CA", "", "CA of an https:// Qdrant, a PEM file; empty: the system's CAs."
    )
    qdrant_api_key: str = setting("TEXTMATCH_QDRANT_API_KEY", "", "API key for Qdrant.", is_secret=True)
    installation: str = installation_setting("")
    collection: str = setting(
        "TEXTMATCH_COLLECTION", DEFAULT_COLLECTION, "Collection that commands work on without --collection."
    )
