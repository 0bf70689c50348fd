"""Settings that are lists."""

from __future__ import annotations

import pytest

from services.gateway.settings import GatewaySettings
from textmatch.errors import InvalidInput
from textmatch.runtime.settings import load


def settings(**values: str) -> GatewaySettings:
    return load(GatewaySettings, {f"TEXTMATCH_GATEWAY_{name}": value for name, value in values.items()})


def test_aliases_name_a_model_or_the_default_one():
    given = "text-embedding-3-small=, rerank-v3.5 = textmatch-cross-encoder,"
    assert settings(MODEL_ALIASES=given).aliases() == {
        "text-embedding-3-small": "",
        "rerank-v3.5": "textmatch-cross-encoder",
    }
    assert settings().aliases() == {}


@pytest.mark.parametrize("given", ["a", "=b"])
def test_an_alias_without_a_name_or_a_sign_is_refused(given: str):
    with pytest.raises(InvalidInput, match="TEXTMATCH_GATEWAY_MODEL_ALIASES: has .*; it must be ALIAS=MODEL"):
        settings(MODEL_ALIASES=given).aliases()


def test_origins():
    assert settings(CORS_ORIGINS="https://a.example, https://b.example").origins() == [
        "https://a.example",
        "https://b.example",
    ]
    assert settings().origins() == []
