"""Cross-encoders against what sentence-transformers itself says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch

from tests.support.encoder import make_tiny_cross_encoder
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import EngineConfig
from textmatch.models.lora import load_cross_encoder_directory
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    CROSS_ENCODER_ORGANISATION,
    DEFAULT_CROSS_ENCODER,
    ENGLISH_CROSS_ENCODER,
    MINI_LM,
    UnusableModel,
    find_model,
)

PAIRS = [
    ("the cat sits", "a dog runs"),
    ("猫", "🙂"),
    ("the cat", "the park " * 300),
    ("the park " * 300, "the cat"),
    ("the park " * 300, "the mat " * 300),
    ("what is a dog", "a dog sits in the park"),
]


def _load(directory: Path, dtype: str = "float32", max_tokens: int | None = None) -> TorchCrossEncoder:
    return TorchCrossEncoder.load(directory, directory.name, EngineConfig(dtype=dtype), max_tokens)


def _reference(directory: Path) -> sentence_transformers.CrossEncoder:
    return sentence_transformers.CrossEncoder(str(directory), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cross_encoder(tmp_path_factory.mktemp("models") / "tiny-pairs")


def test_scores_agree_with_sentence_transformers(directory: Path):
    model = _load(directory)
    scores, raw = model.score(model.tokenize_pairs(PAIRS))
    assert scores == pytest.approx(_reference(directory).predict(PAIRS), abs=1e-5)
    assert raw == pytest.approx(np.log(scores / (1 - scores)), abs=1e-4)
    assert (scores.dtype, raw.dtype) == (np.float32, np.float32)


def test_it_says_what_it_is(directory: Path):
    model = _load(directory)
    assert (model.name, model.max_tokens, model.dtype, model.device) == ("tiny-pairs", 128, "float32", "cpu")
    assert model.model_id.startswith("tiny-pairs-")


def test_the_longer_text_is_cut_first(directory: Path):
    model = _load(directory, max_tokens=32)
    tokenized = model.tokenize_pairs(PAIRS)
    assert [text.truncated for text in tokenized] == [False, False, True, True, True, False]
    assert max(text.token_count for text in tokenized) == 32
    first_tokens = [list(text.type_ids or ()).count(0) for text in tokenized[2:5]]
    assert first_tokens == [4, 29, 16]


def test_order_in_a_pair_matters(directory: Path):
    model = _load(directory)
    there, back = model.score(model.tokenize_pairs([PAIRS[0], PAIRS[0][::-1]]))[0]
    assert there != pytest.approx(back, abs=1e-4)


def test_bfloat16_keeps_the_last_layer_exact(directory: Path):
    model = _load(directory, dtype="bfloat16")
    scores, raw = model.score(model.tokenize_pairs(PAIRS))
    assert model.dtype == "bfloat16"
    assert scores == pytest.approx(_reference(directory).predict(PAIRS), abs=0.02)
    assert (raw.astype(np.float32) != torch.tensor(raw).bfloat16().float().numpy()).any()


def test_bare_logits_go_through_the_sigmoid(tmp_path: Path):
    directory = make_tiny_cross_encoder(tmp_path / "logits", activation="Identity")
    model = _load(directory)
    scores, raw = model.score(model.tokenize_pairs(PAIRS))
    assert raw == pytest.approx(_reference(directory).predict(PAIRS), abs=1e-5)
    assert scores == pytest.approx(1 / (1 + np.exp(-raw)), abs=1e-6)


def test_a_trained_range_is_mapped_to_0_to_1(tmp_path: Path):
    directory = make_tiny_cross_encoder(tmp_path / "range", activation="Identity")
    config_file = directory / "config_sentence_transformers.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "score_range": [-1, -0.2]}))
    model = _load(directory)
    scores, raw = model.score(model.tokenize_pairs(PAIRS))
    assert scores == pytest.approx(np.clip((raw + 1) / 0.8, 0, 1), abs=1e-6)
    assert 1.0 in scores


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_the_english_one_is_an_adapter_over_mini_lm(dtype: str, tolerance: float):
    directory = find_model(ENGLISH_CROSS_ENCODER, CROSS_ENCODER_ORGANISATION)
    base = find_model(MINI_LM, BI_ENCODER_ORGANISATION)
    pairs = [
        ("A man is playing a guitar.", "A man plays the guitar."),
        ("A man is playing a guitar.", "A woman is slicing an onion."),
        ("A man is playing a guitar.", "A man is playing a flute."),
    ]
    model = TorchCrossEncoder.load(directory, ENGLISH_CROSS_ENCODER, EngineConfig(dtype=dtype))
    scores, _ = model.score(model.tokenize_pairs(pairs))
    expected = load_cross_encoder_directory(directory, base, device="cpu").predict(pairs)
    assert scores == pytest.approx(expected, abs=tolerance)
    assert scores[0] > scores[2] > scores[1]
    assert model.model_id.startswith("textmatch-cross-encoder-en-")
    folded = [("A man is playing a guitar.", "Ａ　ｍａｎ　ｐｌａｙｓ　ｔｈｅ　ｇｕｉｔａｒ．")]
    assert model.score(model.tokenize_pairs(folded))[0][0] == pytest.approx(scores[0], abs=tolerance)


def test_the_default_one_reads_chinese_and_scores_the_same_each_time_it_is_loaded():
    directory = find_model(DEFAULT_CROSS_ENCODER, CROSS_ENCODER_ORGANISATION)
    pairs = [("如何删除一个文件夹", "怎样移除目录"), ("如何删除一个文件夹", "今天天气很好")]
    first, second = (TorchCrossEncoder.load(directory, DEFAULT_CROSS_ENCODER) for _ in range(2))
    tokens = first.tokenize_pairs(pairs)
    assert [text.unknown_count for text in tokens] == [0, 0]
    raw = first.score(tokens)[1]
    assert np.array_equal(raw, second.score(tokens)[1])
    assert raw[0] != raw[1]


def test_outputs_that_are_not_classes_are_refused(tmp_path: Path):
    directory = make_tiny_cross_encoder(tmp_path / "sigmoids", label_count=3)
    with pytest.raises(UnusableModel, match="has 3 outputs that are not the classes of a softmax"):
        _load(directory)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnusableModel, match="cannot load"):
        _load(tmp_path)
