"""Tiny base models of four kinds and tiny data, made by each test run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

WORDS = ["red", "green", "blue", "small", "large", "old", "cat", "dog", "bird", "tree", "runs", "sings"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    # With the usual 0.02, so few steps leave a model that gives all pairs the same score.
    "initializer_range": 0.1,
}
_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

KINDS: dict[str, tuple[type[PreTrainedModel], Callable[[], PreTrainedConfig]]] = {
    "bert": (BertModel, lambda: BertConfig(**_SIZES, **_WIDTHS)),
    "albert": (AlbertModel, lambda: AlbertConfig(**_SIZES, **_WIDTHS, embedding_size=16)),
    "roberta": (RobertaModel, lambda: RobertaConfig(**_SIZES, **_WIDTHS)),
    "distilbert": (
        DistilBertModel,
        lambda: DistilBertConfig(**_SIZES, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    ),
}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    return path


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> dict[str, Path]:
    """Kind -> a directory with a random model of two layers over a vocabulary of twelve words."""
    directory = tmp_path_factory.mktemp("bases")
    for kind, (model_class, config) in KINDS.items():
        torch.manual_seed(0)
        model_class(config()).save_pretrained(directory / kind)
        tokenizer = BertTokenizer(vocab=str(vocabulary), model_max_length=64)
        tokenizer.save_pretrained(directory / kind)
    return {kind: directory / kind for kind in KINDS}


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four pairs of three words each, scored by the share of words in common."""
    return _write(tmp_path_factory, lambda shared: f"{shared / 3:.4f}")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs, labelled as similar if two of three words are the same."""
    return _write(tmp_path_factory, lambda shared: str(int(shared >= 2)))


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs in three classes."""
    names = ["contradiction", "neutral", "neutral", "entailment"]
    return _write(tmp_path_factory, names.__getitem__)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(1)
    path = tmp_path_factory.mktemp("data") / "sentences.txt"
    path.write_text("".join(f"{' '.join(chance.sample(WORDS, 4))}\n" for _ in range(64)))
    return path


@pytest.fixture(scope="session")
def triples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(2)
    path = tmp_path_factory.mktemp("data") / "triples.tsv"
    lines = ["anchor\tpositive\tnegative\n"]
    for _ in range(48):
        words = chance.sample(WORDS, 5)
        lines.append(f"{' '.join(words[:3])}\t{' '.join(words[2::-1])}\t{' '.join(words[2:])}\n")
    path.write_text("".join(lines))
    return path


def _write(tmp_path_factory: pytest.TempPathFactory, label_of: Callable[[int], str]) -> Path:
    chance = random.Random(0)
    lines = []
    for _ in range(64):
        kept = chance.randint(0, 3)
        first, second = chance.sample(WORDS, 3), chance.sample(WORDS, 3)
        second[:kept] = first[:kept]
        lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{label_of(len(set(first) & set(second)))}\n")
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    path.write_text("".join(lines))
    return path
