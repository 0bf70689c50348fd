"""Bi-encoders against what sentence-transformers itself says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import (
    LSTM,
    Pooling,
    StaticEmbedding,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from tests.support.encoder import make_tiny_bi_encoder
from textmatch.models.bi_encoder import TorchBiEncoder, read_bi_encoder
from textmatch.models.calibration import PairClassifier
from textmatch.models.engines import EngineConfig
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    DEFAULT_BI_ENCODER,
    ENGLISH_BI_ENCODER,
    MULTILINGUAL_E5,
    UnusableModel,
    find_model,
)
from textmatch.models.prompts import Prompts
from textmatch.vectors import Embeddings

TEXTS = [
    "the cat sits on the mat",
    "a dog runs in the park",
    "猫坐在垫子上。",
    "🙂🙃 👩‍👩‍👧",
    "x",
    "\u200b\u200b",
    "naïve café — ‘quotes’",
    "the cat " * 400,
]


def _load(directory: Path, *, dtype: str = "float32", max_tokens: int | None = None) -> TorchBiEncoder:
    return TorchBiEncoder.load(directory, directory.name, EngineConfig(dtype=dtype), max_tokens)


def _embed(model: TorchBiEncoder, texts: list[str], *, is_query: bool = False) -> Embeddings:
    return model.embed(model.tokenize(texts, is_query=is_query))


def _reference(directory: Path) -> SentenceTransformer:
    return SentenceTransformer(str(directory), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bi_encoder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tiny(tiny_directory: Path) -> TorchBiEncoder:
    return _load(tiny_directory)


@pytest.fixture(scope="module")
def minilm_directory() -> Path:
    return find_model("all-MiniLM-L6-v2", BI_ENCODER_ORGANISATION)


@pytest.fixture(scope="module")
def minilm(minilm_directory: Path) -> TorchBiEncoder:
    return _load(minilm_directory)


@pytest.fixture(scope="module")
def minilm_reference(minilm_directory: Path) -> Embeddings:
    reference: Embeddings = _reference(minilm_directory).encode(TEXTS, normalize_embeddings=True)
    return reference


def test_it_says_what_it_is(tiny: TorchBiEncoder):
    assert (tiny.name, tiny.dimension, tiny.max_tokens) == ("tiny", 32, 64)
    assert (tiny.dtype, tiny.device, tiny.pair_classifier) == ("float32", "cpu", None)
    assert tiny.model_id.startswith("tiny-")


def test_embeddings_agree_with_sentence_transformers(minilm: TorchBiEncoder, minilm_reference: Embeddings):
    embeddings = _embed(minilm, TEXTS)
    assert embeddings.dtype == np.float32
    assert embeddings == pytest.approx(minilm_reference, abs=1e-5)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)


def test_bfloat16_stays_close_to_float32(minilm_directory: Path, minilm_reference: Embeddings):
    model = _load(minilm_directory, dtype="bfloat16")
    cosines = (_embed(model, TEXTS) * minilm_reference).sum(axis=1)
    assert model.dtype == "bfloat16"
    assert cosines.mean() >= 0.999
    assert cosines.min() >= 0.99


def test_a_text_has_the_same_embedding_whatever_it_is_batched_with(minilm: TorchBiEncoder):
    alone = np.concatenate([_embed(minilm, [text]) for text in TEXTS])
    assert _embed(minilm, TEXTS) == pytest.approx(alone, abs=1e-3)
    assert _embed(minilm, TEXTS[::-1])[::-1] == pytest.approx(alone, abs=1e-3)


def test_tokens_are_counted_and_cuts_are_told(minilm: TorchBiEncoder):
    short, long = minilm.tokenize(["the cat", "the cat " * 400], is_query=False)
    assert (short.token_count, short.truncated) == (4, False)
    assert (long.token_count, long.truncated) == (256, True)


def test_a_text_of_exactly_the_limit_is_not_cut(minilm: TorchBiEncoder):
    fits, too_long = minilm.tokenize(["cat " * 254, "cat " * 255], is_query=False)
    assert (fits.token_count, fits.truncated) == (256, False)
    assert (too_long.token_count, too_long.truncated) == (256, True)


def test_texts_can_be_cut_shorter_than_the_model_does(tiny_directory: Path):
    model = _load(tiny_directory, max_tokens=16)
    assert model.max_tokens == 16
    assert model.tokenize(["the cat " * 20], is_query=False)[0].token_count == 16


def test_the_limit_of_the_model_cannot_be_raised(tiny_directory: Path):
    assert _load(tiny_directory, max_tokens=500).max_tokens == 64


@pytest.mark.parametrize("pools_prompt", [True, False])
def test_prompts_follow_the_role(tmp_path: Path, pools_prompt: bool):
    prompts = {"query": "query: ", "document": "document: "}
    directory = make_tiny_bi_encoder(tmp_path / "prompted", prompts=prompts, pools_prompt=pools_prompt)
    model, reference = _load(directory), _reference(directory)
    texts = TEXTS[:3]
    assert _embed(model, texts, is_query=True) == pytest.approx(reference.encode_query(texts), abs=1e-5)
    assert _embed(model, texts) == pytest.approx(reference.encode_document(texts), abs=1e-5)
    assert np.abs(_embed(model, texts) - _embed(model, texts, is_query=True)).max() > 1e-3


def test_full_width_forms_are_folded_if_the_model_asks_for_it(tmp_path: Path):
    directory = make_tiny_bi_encoder(tmp_path / "folding")
    texts = ["ｔｈｅ　ｃａｔ　ｓｉｔｓ", "the cat sits"]
    plain = _load(directory)
    assert _embed(plain, texts) == pytest.approx(_reference(directory).encode(texts), abs=1e-5)
    assert [text.unknown_count for text in plain.tokenize(texts, is_query=False)] == [3, 0]
    config_file = directory / "config_sentence_transformers.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "normalization": "NFKC"}))
    folding = _load(directory)
    wide, narrow = _embed(folding, texts)
    assert np.array_equal(wide, narrow)
    assert narrow == pytest.approx(_embed(plain, texts)[1], abs=1e-6)
    assert folding.model_id != plain.model_id
    config_file.write_text(json.dumps({**config, "normalization": "NFKX"}))
    with pytest.raises(UnusableModel, match='the normalization "NFKX", which is not supported'):
        _load(directory)


def test_the_english_model_folds_full_width_forms_and_plain_mini_lm_does_not(minilm: TorchBiEncoder):
    english = TorchBiEncoder.load(find_model(ENGLISH_BI_ENCODER, BI_ENCODER_ORGANISATION), "english")
    texts = ["ＰＹＴＨＯＮ　ｌｉｓｔ　ｓｏｒｔ", "PYTHON list sort"]
    wide, narrow = _embed(english, texts)
    assert wide @ narrow > 0.95
    wide, narrow = _embed(minilm, texts)
    assert wide @ narrow < 0.5


def test_an_adapter_may_be_served_without_the_prompts_of_its_base(tmp_path: Path):
    base = find_model(MULTILINGUAL_E5, BI_ENCODER_ORGANISATION)
    shipped = find_model(DEFAULT_BI_ENCODER, BI_ENCODER_ORGANISATION)
    adapter = tmp_path / "adapter"
    shutil.copytree(shipped, adapter)
    (adapter / "config_sentence_transformers.json").unlink()
    assert read_bi_encoder(adapter, "a").prompts == {"query": "query: ", "document": "passage: "}
    assert read_bi_encoder(shipped, "b").prompts == {"query": "", "document": ""}
    unprompted = TorchBiEncoder.load(shipped, "b")
    [tokens], [as_query] = (unprompted.tokenize(["猫"], is_query=is_query) for is_query in (False, True))
    assert tokens.ids == as_query.ids == _reference(base).tokenizer("猫")["input_ids"]
    assert unprompted.max_tokens == 512


def test_queries_and_documents_may_share_a_batch(tmp_path: Path):
    prompts = {"query": "query: what is ", "document": "a "}
    directory = make_tiny_bi_encoder(tmp_path / "prompted", prompts=prompts, pools_prompt=False)
    model = _load(directory)
    query, document = (model.tokenize(["the cat"], is_query=is_query)[0] for is_query in (True, False))
    separate = np.concatenate([model.embed([document]), model.embed([query]), model.embed([document])])
    assert model.embed([document, query, document]) == pytest.approx(separate, abs=1e-6)


def test_documents_have_the_passage_prompt_where_a_model_calls_it_so(tmp_path: Path):
    directory = make_tiny_bi_encoder(tmp_path / "passages", prompts={"passage": "passage: "})
    expected = _reference(directory).encode(["passage: the cat"])
    assert _embed(_load(directory), ["the cat"]) == pytest.approx(expected, abs=1e-5)


def test_a_model_of_a_family_without_prompts_gets_those_of_its_card(tmp_path: Path):
    directory = make_tiny_bi_encoder(tmp_path / "e5-small-v2")
    model, reference = _load(directory), _reference(directory)
    expected = reference.encode(["query: the cat", "passage: the cat"])
    found = np.concatenate([_embed(model, ["the cat"], is_query=True), _embed(model, ["the cat"])])
    assert found == pytest.approx(expected, abs=1e-5)


def test_prompts_of_the_settings_replace_those_of_the_model(tmp_path: Path):
    directory = make_tiny_bi_encoder(tmp_path / "prompted", prompts={"query": "query: ", "document": "a "})
    own = _load(directory)
    model = TorchBiEncoder.load(directory, "prompted", prompts=Prompts("what is ", ""))
    expected = _reference(directory).encode(["what is the cat", "the cat"])
    found = np.concatenate([_embed(model, ["the cat"], is_query=True), _embed(model, ["the cat"])])
    assert found == pytest.approx(expected, abs=1e-5)
    assert model.model_id != own.model_id


def test_a_dense_layer_is_part_of_the_model(tmp_path: Path):
    torch.manual_seed(5)
    directory = make_tiny_bi_encoder(tmp_path / "dense")
    reference = _reference(directory)
    reference.insert(2, Dense(32, 8))
    reference.save(str(directory), create_model_card=False)
    model = _load(directory, dtype="bfloat16")
    assert model.dimension == 8
    cosines = (_embed(model, TEXTS) * _reference(directory).encode(TEXTS)).sum(axis=1)
    assert cosines.mean() >= 0.999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_lstm_may_follow_the_transformer(tmp_path: Path, dtype: str):
    torch.manual_seed(5)
    lstm = LSTM(32, 16)
    directory = make_tiny_bi_encoder(tmp_path / "lstm", extra_modules=[lstm])
    model = _load(directory, dtype=dtype)
    alone = np.concatenate([_embed(model, [text]) for text in TEXTS])
    assert model.dimension == 32
    assert (_embed(model, TEXTS) * alone).sum(axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-3)


def test_separate_towers_are_chosen_by_role(tmp_path: Path):
    torch.manual_seed(5)
    towers = [
        next(iter(_reference(make_tiny_bi_encoder(tmp_path / name)).children())) for name in ("one", "two")
    ]
    torch.nn.init.normal_(towers[1].auto_model.embeddings.word_embeddings.weight)
    router = Router.for_query_document([towers[0], Pooling(32)], [towers[1], Pooling(32)])
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "both"), create_model_card=False)
    model, reference = _load(tmp_path / "both"), _reference(tmp_path / "both")
    texts = TEXTS[:3]
    queries = reference.encode_query(texts, normalize_embeddings=True)
    documents = reference.encode_document(texts, normalize_embeddings=True)
    assert _embed(model, texts, is_query=True) == pytest.approx(queries, abs=1e-5)
    assert _embed(model, texts) == pytest.approx(documents, abs=1e-5)
    mixed = model.tokenize(texts, is_query=True) + model.tokenize(texts, is_query=False)
    assert model.embed(mixed) == pytest.approx(np.concatenate([queries, documents]), abs=1e-5)


def test_static_embeddings_are_served(tmp_path: Path):
    torch.manual_seed(5)
    tokenizer = _reference(make_tiny_bi_encoder(tmp_path / "tiny")).tokenizer
    static = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(
        str(tmp_path / "static"), create_model_card=False
    )
    expected = _reference(tmp_path / "static").encode(TEXTS, normalize_embeddings=True)
    assert _embed(_load(tmp_path / "static"), TEXTS) == pytest.approx(expected, abs=1e-5)


def test_word_embeddings_with_an_lstm_are_served(tmp_path: Path):
    torch.manual_seed(5)
    words = WordEmbeddings(WhitespaceTokenizer(["cat", "dog", "mat", "park"]), np.eye(5, dtype=np.float32))
    modules = [words, LSTM(5, 8), Pooling(16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "words"), create_model_card=False)
    texts = ["cat dog", "mat cat park dog", "unknown"]
    expected = _reference(tmp_path / "words").encode(texts, normalize_embeddings=True)
    assert _embed(_load(tmp_path / "words"), texts) == pytest.approx(expected, abs=1e-5)


def test_an_embedding_that_is_not_finite_is_an_error(tiny_directory: Path):
    model = _load(tiny_directory)
    cat, dog = model.tokenize(["cat", "dog"], is_query=False)
    torch.nn.init.constant_(
        model._model[0].auto_model.embeddings.word_embeddings.weight[cat.ids[1]].unsqueeze(0), float("nan")
    )
    assert np.isfinite(model.embed([dog])).all()
    with pytest.raises(ValueError, match="not finite"):
        model.embed([dog, cat])


def test_a_pair_classifier_comes_with_its_model(tmp_path: Path):
    directory = make_tiny_bi_encoder(tmp_path / "classified")
    without = _load(directory)
    weight = np.zeros((2, 96), dtype=np.float32)
    PairClassifier(weight, np.zeros(2, dtype=np.float32), (0.0, 1.0)).save(directory)
    model = _load(directory)
    assert model.pair_classifier is not None
    assert model.model_id != without.model_id


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnusableModel, match="cannot load"):
        _load(tmp_path)


def test_code_in_the_directory_is_never_run(tmp_path: Path):
    directory = make_tiny_bi_encoder(tmp_path / "hostile")
    trace = tmp_path / "ran"
    (directory / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    modules = json.loads((directory / "modules.json").read_text())
    modules[1]["type"] = "evil.Evil"
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnusableModel):
        _load(directory)
    assert not trace.exists()
