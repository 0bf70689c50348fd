"""Settings: frozen dataclasses whose fields name their environment variable, and those that processes share.

    @dataclass(frozen=True)
    class EncoderSettings:
        port: int = setting("TEXTMATCH_ENCODER_PORT", 50051, "Port of the gRPC server.")

    settings = load(EncoderSettings)

Only `settings.py` files declare settings and read the environment. `docs/configuration.md` is generated from
these fields.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from textmatch.errors import InvalidInput, Violation
from textmatch.runtime.tls import ClientTls, ServerTls
from textmatch.v1 import error_reason_pb2

if TYPE_CHECKING:
    from textmatch.runtime.auth import ApiKeys

Settings = TypeVar("Settings")

_MASK = "****"
INSTALLATION_VARIABLE = "TEXTMATCH_INSTALLATION"
DEFAULT_INSTALLATION = "textmatch"


def setting(
    variable: str,
    default: Any,
    description: str,
    *,
    is_secret: bool = False,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    pattern: str = "",
) -> Any:
    """Declare a field that is read from an environment variable: str, int, float or bool.

    Args:
        pattern: a regular expression that a string must match.
    """
    metadata = {
        "variable": variable,
        "description": description,
        "is_secret": is_secret,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "pattern": pattern,
    }
    return dataclasses.field(default=default, metadata=metadata)


def installation_setting(default: str = DEFAULT_INSTALLATION) -> Any:
    """The name of the installation, for every process that uses Redis."""
    return setting(
        INSTALLATION_VARIABLE,
        default,
        "Name of this installation, the prefix of its queue and keys in Redis: a-z, 0-9 and -, up to 32.",
        pattern=r"[a-z0-9][a-z0-9-]{0,31}",
    )


def load(settings_class: type[Settings], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from environment variables; an empty variable counts as not set.

    Raises:
        InvalidInput: naming every variable with a bad value.
    """
    types = get_type_hints(settings_class)
    values: dict[str, Any] = {}
    violations: list[Violation] = []
    for field in dataclasses.fields(settings_class):  # type: ignore[arg-type]
        variable = field.metadata["variable"]
        text = environment.get(variable, "")
        if text == "":
            continue
        try:
            values[field.name] = _parse(text, types[field.name], field.metadata)
        except ValueError as error:
            shown = _MASK if field.metadata["is_secret"] else repr(text)
            reason = error_reason_pb2.ERROR_REASON_FIELD_INVALID
            violations.append(Violation(variable, reason, f"is {shown}; {error}"))
    if violations:
        raise InvalidInput(violations)
    return settings_class(**values)


def describe(settings: Any) -> dict[str, Any]:
    """Field name -> value for the log, secrets masked."""
    return {
        field.name: _MASK if field.metadata["is_secret"] and value else value
        for field in dataclasses.fields(settings)
        for value in [getattr(settings, field.name)]
    }


def _parse(text: str, kind: type, metadata: Mapping[str, Any]) -> Any:
    value = _PARSERS[kind](text)
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(f"it must be one of {', '.join(metadata['choices'])}")
    if metadata["pattern"] and not re.fullmatch(metadata["pattern"], value):
        raise ValueError(f"it must match {metadata['pattern']}")
    if metadata["minimum"] is not None and value < metadata["minimum"]:
        raise ValueError(f"it must be at least {metadata['minimum']}")
    if metadata["maximum"] is not None and value > metadata["maximum"]:
        raise ValueError(f"it must be at most {metadata['maximum']}")
    return value


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("it must be a whole number") from None


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("it must be a number") from None


def _parse_bool(text: str) -> bool:
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("it must be true or false")


_PARSERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: _parse_int,
    float: _parse_float,
    bool: _parse_bool,
}


@dataclass(frozen=True)
class ProcessSettings:
    """Settings of every process."""

    drain_seconds: float = setting(
        "TEXTMATCH_DRAIN_SECONDS", 20.0, "Time for running calls to end after SIGTERM.", minimum=0
    )
    log_level: str = setting(
        "TEXTMATCH_LOG_LEVEL",
        "INFO",
        "Least severe level logged.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )
    otlp_endpoint: str = setting(
        "TEXTMATCH_OTLP_ENDPOINT", "", "OpenTelemetry collector, `http://host:4317`. Empty: no traces."
    )
    trace_sample_ratio: float = setting(
        "TEXTMATCH_TRACE_SAMPLE_RATIO",
        1.0,
        "Share of the calls without an incoming trace that are traced.",
        minimum=0,
        maximum=1,
    )
    log_style: str = setting("TEXTMATCH_LOG_STYLE", "json", "Format of log lines.", choices=("json", "text"))


@dataclass(frozen=True)
class CertificateSettings:
    """The certificate of this process."""

    tls_cert: str = setting(
        "TEXTMATCH_TLS_CERT",
        "",
        "Certificate chain of this process, a PEM file; used as server and, if required, as client.",
    )
    tls_key: str = setting("TEXTMATCH_TLS_KEY", "", "Key of that certificate, a PEM file.")


@dataclass(frozen=True)
class ClientTlsSettings(CertificateSettings):
    """TLS of connections to encoder and matcher."""

    tls_ca: str = setting(
        "TEXTMATCH_TLS_CA",
        "",
        "CA of encoder and matcher, a PEM file or `system`. Empty: connect without TLS.",
    )

    def client_tls(self) -> ClientTls | None:
        """None: not encrypted.

        Raises:
            InvalidInput: a certificate without its key, or a key without its certificate.
        """
        if bool(self.tls_cert) != bool(self.tls_key):
            raise _half_a_pair()
        return ClientTls(self.tls_ca, self.tls_cert, self.tls_key) if self.tls_ca else None


@dataclass(frozen=True)
class TlsServerSettings(CertificateSettings):
    """TLS of a server."""

    tls_client_ca: str = setting(
        "TEXTMATCH_TLS_CLIENT_CA",
        "",
        "CA that must have issued the clients' certificates, a PEM file. Empty: clients need no certificate.",
    )

    def server_tls(self) -> ServerTls | None:
        """None: not encrypted.

        Raises:
            InvalidInput: a certificate without its key, or a CA for clients without a certificate.
        """
        if bool(self.tls_cert) != bool(self.tls_key):
            raise _half_a_pair()
        if self.tls_cert:
            client_ca = Path(self.tls_client_ca) if self.tls_client_ca else None
            return ServerTls(Path(self.tls_cert), Path(self.tls_key), client_ca)
        if self.tls_client_ca:
            raise InvalidInput.of_field("TEXTMATCH_TLS_CLIENT_CA", "needs TEXTMATCH_TLS_CERT and _KEY")
        return None


@dataclass(frozen=True)
class ServerSettings(TlsServerSettings):
    """TLS and API keys of a gRPC server."""

    api_keys_file: str = setting(
        "TEXTMATCH_API_KEYS_FILE",
        "",
        "File of API keys, read again when it changes. Empty: every call is allowed.",
    )
    connection_age_seconds: float = setting(
        "TEXTMATCH_CONNECTION_AGE_SECONDS",
        300.0,
        "Clients reconnect after about this time and find new replicas; running calls continue. 0: never.",
        minimum=0,
    )

    max_running_calls: int = setting(
        "TEXTMATCH_MAX_RUNNING_CALLS",
        1_000,
        "Calls that may run at the same time, open streams included. Health checks do not count.",
        minimum=1,
    )

    def api_keys(self) -> ApiKeys | None:
        """The API keys; None: calls need no key.

        Raises:
            InvalidInput: the file cannot be read, or a line is invalid.
        """
        # Imported here, because clients need neither keys nor metrics of a server.
        from textmatch.runtime.auth import ApiKeys

        return ApiKeys(Path(self.api_keys_file)) if self.api_keys_file else None


@dataclass(frozen=True)
class StoreSettings(ProcessSettings, ClientTlsSettings):
    """Settings of every process that uses encoder, Qdrant and Redis."""

    encoder_target: str = setting(
        "TEXTMATCH_ENCODER_TARGET",
        "127.0.0.1:50051",
        "gRPC target of the encoder; `dns:///name:port` and `ipv4:host:port,host:port` balance the load.",
    )
    encoder_api_key: str = setting(
        "TEXTMATCH_ENCODER_API_KEY", "", "API key for the encoder, with the scope read.", is_secret=True
    )
    qdrant_url: str = setting("TEXTMATCH_QDRANT_URL", "http://127.0.0.1:6334", "URL of Qdrant's gRPC port.")
    qdrant_ca: str = setting(
        "TEXTMATCH_QDRANT_CA", "", "CA to trust for an https:// Qdrant, a PEM file; empty: the system's CAs."
    )
    qdrant_api_key: str = setting("TEXTMATCH_QDRANT_API_KEY", "", "API key for Qdrant.", is_secret=True)
    redis_url: str = setting(
        "TEXTMATCH_REDIS_URL",
        "redis://127.0.0.1:6379/0",
        "URL of Redis.",
        is_secret=True,
    )
    installation: str = installation_setting()
    tombstone_seconds: int = setting(
        "TEXTMATCH_TOMBSTONE_SECONDS",
        7 * 24 * 3600,
        "How long a delete is remembered at least. It must be longer than any write can wait in the queue.",
        minimum=60,
    )


def _half_a_pair() -> InvalidInput:
    return InvalidInput.of_field("TEXTMATCH_TLS_CERT", "and TEXTMATCH_TLS_KEY must be set together")
