"""A stack with TLS, API keys and a tiny model, for programs that read their settings from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from tests.support.certificates import Authority
from tests.support.encoder import make_tiny_bi_encoder
from tests.support.stack import running_stack

_SERVICE_KEY = "service-key-0123456789abcdef"


@dataclass(frozen=True)
class SecuredStack:
    """What a client needs to call a running stack that asks for an API key and a client certificate.

    Attributes:
        settings: all but the key.
    """

    settings: dict[str, str]
    api_key: str = "writer-key-0123456789abcdef"


@contextmanager
def running_secured_stack(directory: Path) -> Iterator[SecuredStack]:
    """Start a stack in a folder; stop it at the end."""
    make_tiny_bi_encoder(directory / "model")
    authority = Authority(directory)
    server, client = authority.issue("server"), authority.issue("client")
    _to_pkcs8(client.key)
    keys = directory / "keys"
    keys.write_text(f"writer read,write {SecuredStack.api_key}\nservice read {_SERVICE_KEY}\n")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(directory / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
        "TEXTMATCH_TLS_CERT": str(server.cert),
        "TEXTMATCH_TLS_KEY": str(server.key),
        "TEXTMATCH_TLS_CLIENT_CA": str(authority.file),
        "TEXTMATCH_TLS_CA": str(authority.file),
        "TEXTMATCH_API_KEYS_FILE": str(keys),
        "TEXTMATCH_ENCODER_API_KEY": _SERVICE_KEY,
    }
    with running_stack(directory / "data", environment) as running:
        yield SecuredStack(
            {
                "TEXTMATCH_MATCHER_TARGET": running.file["matcher"],
                "TEXTMATCH_TLS_CA": str(authority.file),
                "TEXTMATCH_TLS_CERT": str(client.cert),
                "TEXTMATCH_TLS_KEY": str(client.key),
            }
        )


def _to_pkcs8(key: Path) -> None:
    """Convert a private key into the only form that Java reads."""
    loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(loaded.private_bytes(pem, pkcs8, serialization.NoEncryption()))
