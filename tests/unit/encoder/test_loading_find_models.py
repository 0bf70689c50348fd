from __future__ import annotations

from pathlib import Path

import pytest

from services.encoder.loading import find_models
from services.encoder.settings import EncoderSettings
from textmatch.errors import ModelNotFound
from textmatch.models import model_resolver
from textmatch.models.model_resolver import (
    DEFAULT_BI_ENCODER,
    DEFAULT_CACHE_DIRECTORY,
    DEFAULT_CROSS_ENCODER,
    UnusableModel,
)
from textmatch.models.multilingual_e5 import unpacked_directory
from textmatch.models.prompts import BadPrompts, Prompts


def test_the_default_models_are_built_in():
    settings = EncoderSettings()
    found = find_models(settings)
    assert [model.name for model in found.bi_encoders] == [DEFAULT_BI_ENCODER]
    assert [model.name for model in found.cross_encoders] == [DEFAULT_CROSS_ENCODER]
    assert settings.cache_directory == DEFAULT_CACHE_DIRECTORY.expanduser()


def test_a_model_that_comes_packed_is_unpacked_into_the_cache_of_the_settings(tmp_path: Path):
    folder = unpacked_directory(tmp_path)
    folder.mkdir()
    (folder / "model.safetensors").touch()
    found = find_models(
        EncoderSettings(bi_encoder="multilingual-e5-small", cross_encoder="none", cache_dir=str(tmp_path))
    )
    assert found.bi_encoders[0].directory == folder


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    settings = EncoderSettings(bi_encoder="multilingual-e5-small", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(
        UnusableModel, match='cannot unpack "multilingual-e5-small" into ".*cache": .*writable'
    ):
        find_models(settings)


def test_several_bi_encoders_and_no_cross_encoder(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    settings = EncoderSettings(bi_encoder=f"{tmp_path}, all-MiniLM-L6-v2", cross_encoder="none")
    found = find_models(settings)
    assert [model.name for model in found.bi_encoders] == [str(tmp_path), "all-MiniLM-L6-v2"]
    assert found.bi_encoders[0].directory == tmp_path
    assert found.cross_encoders == []


def test_several_cross_encoders(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    found = find_models(EncoderSettings(cross_encoder=f"{DEFAULT_CROSS_ENCODER}, {tmp_path}"))
    assert [model.name for model in found.cross_encoders] == [DEFAULT_CROSS_ENCODER, str(tmp_path)]


def test_a_model_from_the_hub_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = tmp_path / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir()
    (snapshot / "model.safetensors").touch()
    monkeypatch.setattr(model_resolver, "snapshot_download", lambda *_, **__: str(snapshot))
    with pytest.raises(UnusableModel, match=f'use "BAAI/bge-m3@{snapshot.name}"'):
        find_models(EncoderSettings(bi_encoder="BAAI/bge-m3", cross_encoder="none"))
    name = "BAAI/bge-m3@0123456"
    found = find_models(EncoderSettings(bi_encoder=name, cross_encoder="none"))
    assert found.bi_encoders[0].directory == snapshot


def test_prompts_belong_to_a_model_that_is_loaded():
    name = "all-MiniLM-L6-v2"
    prompts = '{"all-MiniLM-L6-v2": {"query": "find: "}}'
    found = find_models(EncoderSettings(bi_encoder=name, cross_encoder="none", prompts=prompts))
    assert found.bi_encoders[0].prompts == Prompts("find: ", "")
    with pytest.raises(BadPrompts, match="models that are not loaded: all-MiniLM-L6-v2"):
        find_models(EncoderSettings(prompts=prompts))


def test_a_missing_model_is_named():
    with pytest.raises(ModelNotFound, match='no model "no-such-model"'):
        find_models(EncoderSettings(bi_encoder="all-MiniLM-L6-v2,no-such-model"))
