"""A model that costs next to nothing, for measurements of everything else."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

_DIMENSION = 32
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def make_tiny_bi_encoder(path: Path) -> Path:
    """A BERT of 2 layers and 32 dimensions with random weights, in sentence-transformers' format."""
    backbone = path.with_name(f"{path.name}-backbone")
    backbone.mkdir(parents=True)
    pieces = [*_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    vocabulary_file = backbone / "vocab.txt"
    vocabulary_file.write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=_DIMENSION,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * _DIMENSION,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(str(backbone))
    BertTokenizerFast(vocab=str(vocabulary_file), model_max_length=128).save_pretrained(str(backbone))
    modules = [Transformer(str(backbone), max_seq_length=64), Pooling(_DIMENSION, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(path), create_model_card=False)
    return path
