"""Settings of the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from textmatch.errors import InvalidInput
from textmatch.runtime.settings import ClientTlsSettings, ProcessSettings, TlsServerSettings, setting


@dataclass(frozen=True)
class GatewaySettings(ProcessSettings, ClientTlsSettings, TlsServerSettings):
    """All settings, read once at start."""

    host: str = setting("TEXTMATCH_GATEWAY_HOST", "127.0.0.1", "Address the HTTP server listens on.")
    port: int = setting("TEXTMATCH_GATEWAY_PORT", 8080, "Port of the HTTP server.", minimum=0)
    metrics_port: int = setting(
        "TEXTMATCH_GATEWAY_METRICS_PORT", 9104, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    matcher_target: str = setting(
        "TEXTMATCH_MATCHER_TARGET",
        "127.0.0.1:50052",
        "gRPC target of the matcher; `dns:///name:port` and `ipv4:host:port,host:port` balance the load.",
    )
    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET", "127.0.0.1:50051", "gRPC target of the encoder, in the same forms."
    )
    timeout_seconds: float = setting(
        "TEXTMATCH_GATEWAY_TIMEOUT_SECONDS",
        10.0,
        "Time limit of a request without the header `Request-Timeout`.",
        minimum=0.001,
    )
    bulk_timeout_seconds: float = setting(
        "TEXTMATCH_GATEWAY_BULK_TIMEOUT_SECONDS",
        300.0,
        "The same for each batch of documents, of queries or of more than 64 texts; the longest one allowed.",
        minimum=0.001,
    )
    max_body_bytes: int = setting(
        "TEXTMATCH_GATEWAY_MAX_BODY_BYTES",
        16 * 1024 * 1024,
        "Largest body of a request. Streams of documents have no limit; each of their lines, 8 MiB.",
        minimum=1,
    )
    max_requests: int = setting(
        "TEXTMATCH_GATEWAY_MAX_REQUESTS", 1_000, "Requests at the same time; further ones get 429.", minimum=1
    )
    model_aliases: str = setting(
        "TEXTMATCH_GATEWAY_MODEL_ALIASES",
        "",
        "Other names of models, `ALIAS=MODEL,ALIAS=MODEL`; no MODEL means the default one of its kind.",
    )
    console: bool = setting(
        "TEXTMATCH_GATEWAY_CONSOLE",
        True,
        "Serve the console at `/`. It needs the same keys as other callers.",
    )
    cors_origins: str = setting(
        "TEXTMATCH_GATEWAY_CORS_ORIGINS",
        "",
        "Origins whose pages may call the gateway, separated by commas; `*` means all. Empty: none.",
    )

    def aliases(self) -> dict[str, str]:
        """The other names of models; "" means the default one.

        Raises:
            InvalidInput: an alias has no "=", or no name.
        """
        found: dict[str, str] = {}
        for entry in filter(None, map(str.strip, self.model_aliases.split(","))):
            alias, separator, model = entry.partition("=")
            if not separator or not alias.strip():
                raise InvalidInput.of_field(
                    "TEXTMATCH_GATEWAY_MODEL_ALIASES", f"has {entry!r}; it must be ALIAS=MODEL"
                )
            found[alias.strip()] = model.strip()
        return found

    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def origins(self) -> list[str]:
        """The origins whose pages may call the gateway."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]
