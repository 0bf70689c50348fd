"""Settings that several processes share, under the same names everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textmatch.runtime.api_keys import ApiKeys
from textmatch.runtime.config import setting


@dataclass(frozen=True)
class ProcessSettings:
    """What every process has."""

    drain_seconds: float = setting(
        "TEXTMATCH_DRAIN_SECONDS", 20.0, "Time for running calls to end after SIGTERM.", minimum=0
    )
    log_level: str = setting(
        "TEXTMATCH_LOG_LEVEL",
        "INFO",
        "Least severe level logged.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_style: str = setting("TEXTMATCH_LOG_STYLE", "json", "Form of log lines.", choices=("json", "text"))


@dataclass(frozen=True)
class ServerSettings:
    """Who may call a gRPC server."""

    api_keys_file: str = setting(
        "TEXTMATCH_API_KEYS_FILE",
        "",
        "File of the API keys that may call; read again when it changes. Empty: everybody may.",
    )

    def api_keys(self) -> ApiKeys | None:
        """The keys, None if none are asked for.

        Raises:
            InvalidInput: the file cannot be read, or a line of it is wrong.
        """
        return ApiKeys(Path(self.api_keys_file)) if self.api_keys_file else None


@dataclass(frozen=True)
class StoreSettings(ProcessSettings):
    """What every process has that works between encoder, Qdrant and Redis."""

    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET", "127.0.0.1:50051", "The encoder as gRPC names it; `dns:///` balances."
    )
    encoder_api_key: str = setting(
        "TEXTMATCH_ENCODER_API_KEY", "", "API key for the encoder, with the scope read.", is_secret=True
    )
    qdrant_url: str = setting("TEXTMATCH_QDRANT_URL", "http://127.0.0.1:6334", "Qdrant's gRPC port as a URL.")
    qdrant_api_key: str = setting("TEXTMATCH_QDRANT_API_KEY", "", "API key for Qdrant.", is_secret=True)
    redis_url: str = setting(
        "TEXTMATCH_REDIS_URL", "redis://127.0.0.1:6379/0", "Redis: queue and ingest state.", is_secret=True
    )
    payload_indexes: str = setting(
        "TEXTMATCH_PAYLOAD_INDEXES",
        "",
        "Attributes that filters are quick on, as `name:kind,name:kind`; keyword, integer, float or bool.",
    )
    collection_alias: str = setting(
        "TEXTMATCH_COLLECTION_ALIAS", "textmatch", "Alias of the collection in use in Qdrant."
    )
