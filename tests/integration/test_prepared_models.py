"""Models from the cache do what the models that they were made of do, and need no torch for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder as PlainCrossEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from services.encoder.loading import load_models
from services.encoder.settings import EncoderSettings
from tests.support.encoder import make_tiny_bi_encoder
from tests.support.native_kernels import FORMS
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import EngineConfig, decide_engine
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    DEFAULT_BI_ENCODER,
    DEFAULT_CROSS_ENCODER,
    ENGLISH_BI_ENCODER,
    ENGLISH_CROSS_ENCODER,
    find_model,
)
from textmatch.models.native.kernel import UnreadableCache, read_cache, write_cache
from textmatch.models.native.models import NativeBiEncoder, NativeCrossEncoder

pytestmark = pytest.mark.usefixtures("kernel_form")

TEXTS = ["delete a folder", "a", "递归删除目录 🙂", "words " * 400, "how do I sort a list of numbers"]
PAIRS = [(first, second) for first in TEXTS for second in TEXTS]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def native(cache: Path) -> EngineConfig:
    return decide_engine("native", device="cpu", dtype="auto", threads=1, cache_directory=cache)


def make_bi_encoder(directory: Path, modules: list[Any], prompts: dict[str, str] | None = None) -> Path:
    make_tiny_bi_encoder(directory / "donor")
    first = Transformer(str(directory / "donor"), max_seq_length=64)
    SentenceTransformer(modules=[first, *modules], prompts=prompts, device="cpu").save(
        str(directory / "model")
    )
    return directory / "model"


def prepare_bi_encoder(directory: Path, cache: Path) -> tuple[TorchBiEncoder, NativeBiEncoder]:
    model = TorchBiEncoder.load(directory, "m", native(cache))
    described = model.describe()
    assert described is not None
    described.save(cache, model.model_id)
    return model, NativeBiEncoder(directory, "m", native(cache), None)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalises", [False, True])
def test_bi_encoders_agree(pooling: str, normalises: bool, tmp_path: Path):
    modules = [Pooling(32, pooling_mode=pooling), *([Normalize()] if normalises else [])]
    directory = make_bi_encoder(tmp_path, modules, {"query": "find: ", "document": "text: "})
    model, prepared = prepare_bi_encoder(directory, tmp_path)
    assert prepared.model_id == model.model_id
    assert prepared.dimension == model.dimension
    assert prepared.max_tokens == model.max_tokens == 64
    for is_query in (False, True):
        expected, tokens = (
            model.tokenize(TEXTS, is_query=is_query),
            prepared.tokenize(TEXTS, is_query=is_query),
        )
        assert [text.ids for text in tokens] == [text.ids for text in expected]
        assert [text.truncated for text in tokens] == [text.truncated for text in expected]
        assert np.allclose(prepared.embed(tokens), model.embed(expected), atol=1e-6)


def test_the_english_bi_encoder_agrees(tmp_path: Path):
    model, prepared = prepare_bi_encoder(find_model(ENGLISH_BI_ENCODER, BI_ENCODER_ORGANISATION), tmp_path)
    tokens = prepared.tokenize(TEXTS, is_query=False)
    assert np.allclose(prepared.embed(tokens), model.embed(tokens), atol=1e-6)


# They are large: one form of the kernel is enough.
@pytest.mark.parametrize("kernel_form", FORMS[:1], indirect=True)
def test_the_default_models_agree_and_share_their_tokenizer(tmp_path: Path):
    model, prepared = prepare_bi_encoder(find_model(DEFAULT_BI_ENCODER, BI_ENCODER_ORGANISATION), tmp_path)
    tokens = prepared.tokenize(TEXTS, is_query=False)
    assert tokens == model.tokenize(TEXTS, is_query=False)
    assert np.allclose(prepared.embed(tokens), model.embed(tokens), atol=1e-6)
    cross_encoder = check_cross_encoder(find_model(DEFAULT_CROSS_ENCODER, "cross-encoder"), tmp_path)
    assert cross_encoder._tokenizer is prepared._tokenizer


def test_tables_are_mapped_from_the_cache_and_not_read(tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean")])
    _, prepared = prepare_bi_encoder(directory, tmp_path)
    words = prepared._kernel._tables["words"]
    assert isinstance(words.base, np.memmap)
    assert not words.flags.writeable


def test_fewer_tokens_are_read_if_asked(tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean")])
    prepare_bi_encoder(directory, tmp_path)
    prepared = NativeBiEncoder(directory, "m", native(tmp_path), 9)
    assert prepared.max_tokens == 9
    assert max(text.token_count for text in prepared.tokenize(TEXTS, is_query=False)) == 9


def test_what_follows_the_pooling_needs_torch(tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean"), Dense(32, 16)])
    assert TorchBiEncoder.load(directory, "m", native(tmp_path)).describe() is None


def test_a_changed_model_is_not_taken_from_the_cache(tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean")])
    prepare_bi_encoder(directory, tmp_path)
    (directory / "more.json").write_text("{}")
    with pytest.raises(UnreadableCache, match="No such file"):
        NativeBiEncoder(directory, "m", native(tmp_path), None)


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_a_broken_cache_is_told(content: bytes, tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean")])
    prepare_bi_encoder(directory, tmp_path)
    for kept in tmp_path.glob("*.safetensors"):
        kept.write_bytes(content)
    with pytest.raises(UnreadableCache):
        NativeBiEncoder(directory, "m", native(tmp_path), None)


def test_a_cut_cache_is_told(tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean")])
    prepare_bi_encoder(directory, tmp_path)
    [weights] = tmp_path.glob("*-native-*.safetensors")
    for size in (weights.stat().st_size - 1, 500, 4):
        os.truncate(weights, size)
        with pytest.raises(UnreadableCache):
            NativeBiEncoder(directory, "m", native(tmp_path), None)


def test_a_damaged_description_is_replaced(tmp_path: Path):
    directory = make_bi_encoder(tmp_path, [Pooling(32, pooling_mode="mean")])
    settings = EncoderSettings(
        bi_encoder=str(directory),
        cross_encoder="none",
        engine="native",
        device="cpu",
        threads=1,
        cache_dir=str(tmp_path / "c"),
    )
    [entry] = load_models(settings).models.bi_encoders
    assert isinstance(entry.model, NativeBiEncoder)
    [described] = (tmp_path / "c").glob("*-bi-encoder-*.safetensors")
    write_cache(described, {"tokenizer": {"content": "{}"}}, {})
    [entry] = load_models(settings).models.bi_encoders
    assert isinstance(entry.model, NativeBiEncoder)
    assert read_cache(described)[0]["pooling"] == "mean"


CLASSIFIERS = {
    "bert": lambda size: transformers.BertConfig(vocab_size=size, **SMALL),
    "albert": lambda size: transformers.AlbertConfig(vocab_size=size, embedding_size=16, **SMALL),
    "roberta": lambda size: transformers.RobertaConfig(vocab_size=size, pad_token_id=0, **SMALL),
    "distilbert": lambda size: transformers.DistilBertConfig(
        vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    ),
}


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_cross_encoders_agree(architecture: str, tmp_path: Path):
    make_tiny_bi_encoder(tmp_path / "donor")
    tokenizer = SentenceTransformer(str(tmp_path / "donor"), device="cpu").tokenizer
    config = CLASSIFIERS[architecture](len(tokenizer))
    config.num_labels = 1
    torch.manual_seed(1)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    PlainCrossEncoder(str(tmp_path / "plain"), num_labels=1, max_length=64, device="cpu").save(
        str(tmp_path / "cross")
    )
    check_cross_encoder(tmp_path / "cross", tmp_path)


def test_the_english_cross_encoder_agrees(tmp_path: Path):
    check_cross_encoder(find_model(ENGLISH_CROSS_ENCODER, "cross-encoder"), tmp_path)


def check_cross_encoder(directory: Path, cache: Path) -> NativeCrossEncoder:
    model = TorchCrossEncoder.load(directory, "c", native(cache))
    described = model.describe()
    assert described is not None
    described.save(cache, model.model_id)
    prepared = NativeCrossEncoder(directory, "c", native(cache), None)
    assert (prepared.model_id, prepared.max_tokens) == (model.model_id, model.max_tokens)
    tokens = prepared.tokenize_pairs(PAIRS)
    assert [text.ids for text in tokens] == [text.ids for text in model.tokenize_pairs(PAIRS)]
    for found, expected in zip(prepared.score(tokens), model.score(tokens), strict=True):
        assert np.allclose(found, expected, atol=1e-5)
    return prepared
