from __future__ import annotations

import logging

import pytest
from prometheus_client import REGISTRY

from services.encoder import inference
from services.encoder.inference import UnknownTokens
from textmatch.models.fast_tokenizer import TokenizedText

METRIC = "textmatch_encoder_unknown_tokens_ratio"


def text(tokens: int, unknown: int) -> TokenizedText:
    return TokenizedText(range(tokens), None, truncated=False, is_query=False, unknown_count=unknown)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_texts_that_the_model_cannot_read_are_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    counted = UnknownTokens("warned-1")
    counted.count([text(6, 4), text(6, 4)])
    assert warnings(caplog) == []
    counted.count([text(6, 4)])
    [warning] = warnings(caplog)
    assert warning.startswith("warned-1 does not know 67 % of the recent tokens")
    counted.count([text(600, 400)])
    assert len(warnings(caplog)) == 1
    monkeypatch.setattr(inference, "_SECONDS_BETWEEN_WARNINGS", 0.0)
    counted = UnknownTokens("warned-1")
    counted.count([text(60, 40)])
    counted.count([text(60, 40)])
    assert len(warnings(caplog)) == 3


def test_a_name_now_and_then_is_not_warned_of(caplog: pytest.LogCaptureFixture):
    counted = UnknownTokens("known-1")
    for _ in range(100):
        counted.count([text(20, 1), text(20, 2)])
    assert warnings(caplog) == []


def test_a_change_of_the_language_is_noticed(caplog: pytest.LogCaptureFixture):
    counted = UnknownTokens("changed-1")
    counted.count([text(1_000_000, 0)])
    for _ in range(20):
        counted.count([text(100, 70)])
    assert len(warnings(caplog)) == 1


def test_the_share_of_each_call_is_a_metric():
    counted = UnknownTokens("measured-1")
    counted.count([text(10, 0)])
    counted.count([text(10, 8), text(10, 6)])
    counted.count([])
    labels = {"model_id": "measured-1"}
    assert REGISTRY.get_sample_value(f"{METRIC}_count", labels) == 2
    assert REGISTRY.get_sample_value(f"{METRIC}_sum", labels) == 0.7
    assert REGISTRY.get_sample_value(f"{METRIC}_bucket", {**labels, "le": "0.2"}) == 1
