from __future__ import annotations

from pathlib import Path

import pytest

from services.encoder.loading import find_models
from services.encoder.settings import EncoderSettings
from textmatch.errors import ModelNotFound


def test_the_default_models_are_bundled():
    found = find_models(EncoderSettings())
    assert [model.name for model in found.bi_encoders] == ["textmatch-bi-encoder-en"]
    assert [model.name for model in found.cross_encoders] == ["textmatch-cross-encoder-en"]


def test_several_bi_encoders_and_no_cross_encoder(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    settings = EncoderSettings(bi_encoder=f"{tmp_path}, all-MiniLM-L6-v2", cross_encoder="none")
    found = find_models(settings)
    assert [model.name for model in found.bi_encoders] == [str(tmp_path), "all-MiniLM-L6-v2"]
    assert found.bi_encoders[0].directory == tmp_path
    assert found.cross_encoders == []


def test_a_missing_model_is_named():
    with pytest.raises(ModelNotFound, match='no model "no-such-model"'):
        find_models(EncoderSettings(bi_encoder="all-MiniLM-L6-v2,no-such-model"))
