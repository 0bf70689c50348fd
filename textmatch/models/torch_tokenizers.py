"""The tokenizers of models that torch loads: texts to token ids, and token ids to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, WordEmbeddings
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from textmatch.models.fast_tokenizer import FastTokenizer, Pair, TokenizedText, TokenizerDescription
from textmatch.models.model_resolver import UnusableModel

# For models without a limit. A text of the largest size allowed has fewer tokens.
_NO_LIMIT_TOKENS = 32_768
# Kernels are compiled for each shape: with fewer shapes a CPU computes 25 % more tokens in less memory.
_WIDTH_STEP = 8


class InputTokenizer(Protocol):
    """Tokenizes for a model's first module. Safe to call from several threads."""

    max_tokens: int

    def tokenize(self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool) -> list[TokenizedText]:
        """Tokenize each text or pair, truncated to `max_tokens`."""
        ...

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Tensor]:
        """Convert a batch to the inputs of the module."""
        ...


def input_tokenizer(module: nn.Module, max_tokens: int | None) -> InputTokenizer:
    """The tokenizer of a model's first module.

    Args:
        module: the first module.
        max_tokens: truncate texts to this if the model itself reads more.

    Raises:
        UnusableModel: the module does not read texts, or has no fast tokenizer.
    """
    if isinstance(module, Transformer) and isinstance(module.tokenizer, PreTrainedTokenizerFast):
        return TransformerTokenizer(module.tokenizer, module.max_seq_length, max_tokens)
    if isinstance(module, WordEmbeddings):
        return WordTokenizer(module.tokenizer, _limit(module.max_seq_length, max_tokens))
    if isinstance(module, StaticEmbedding):
        return BagTokenizer(module.tokenizer, _limit(None, max_tokens))
    raise UnusableModel(f"input modules of type {type(module).__name__} are not supported")


class TransformerTokenizer:
    """The fast tokenizer of a transformer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, own_tokens: float | None, max_tokens: int | None
    ) -> None:
        self.max_tokens = _limit(own_tokens, max_tokens)
        self._own_tokens = _limit(own_tokens, None)
        self._truncation_side: str = tokenizer.truncation_side
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._unknown_id: int | None = tokenizer.unk_token_id
        self._fast = FastTokenizer(self._backend, self.max_tokens, self._truncation_side, self._unknown_id)
        self._pad_id: int = tokenizer.pad_token_id or 0
        self._pads_left = tokenizer.padding_side == "left"
        self._reads_type_ids = "token_type_ids" in tokenizer.model_input_names

    def tokenize(self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool) -> list[TokenizedText]:
        return self._fast.tokenize(texts, is_query=is_query)

    def describe(self) -> TokenizerDescription:
        """The tokenizer for use without torch."""
        return TokenizerDescription(
            self._backend.to_str(), self._truncation_side, self._own_tokens, self._unknown_id
        )

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Tensor]:
        longest = max(text.token_count for text in batch)
        width = max(longest, min(self.max_tokens, -(-longest // _WIDTH_STEP) * _WIDTH_STEP))
        shape = (len(batch), width)
        features = {
            "input_ids": np.full(shape, self._pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        if self._reads_type_ids:
            features["token_type_ids"] = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(batch):
            span = slice(width - text.token_count, width) if self._pads_left else slice(text.token_count)
            features["input_ids"][row, span] = text.ids
            features["attention_mask"][row, span] = 1
            if self._reads_type_ids and text.type_ids is not None:
                features["token_type_ids"][row, span] = text.type_ids
        return {name: torch.from_numpy(values) for name, values in features.items()}


class WordTokenizer:
    """The word tokenizer of a table of word embeddings."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool) -> list[TokenizedText]:
        return [_cut(self._tokenizer.tokenize(text), self.max_tokens, is_query) for text in texts]

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Tensor]:
        shape = (len(batch), max(1, *(text.token_count for text in batch)))
        input_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(batch):
            input_ids[row, : text.token_count] = text.ids
            mask[row, : text.token_count] = 1
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}


class BagTokenizer:
    """The tokenizer of a bag of token embeddings, which needs no padding."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool) -> list[TokenizedText]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [_cut(encoding.ids, self.max_tokens, is_query) for encoding in encodings]

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Tensor]:
        ends: NDArray[np.int64] = np.cumsum([text.token_count for text in batch], dtype=np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        input_ids = np.concatenate([np.asarray(text.ids, dtype=np.int64) for text in batch])
        return {"input_ids": torch.from_numpy(input_ids), "offsets": torch.from_numpy(starts)}


def _cut(ids: Sequence[int], max_tokens: int, is_query: bool) -> TokenizedText:
    return TokenizedText(ids[:max_tokens], None, len(ids) > max_tokens, is_query)


def _limit(own_tokens: float | None, max_tokens: int | None) -> int:
    return int(min(own_tokens or _NO_LIMIT_TOKENS, max_tokens or _NO_LIMIT_TOKENS, _NO_LIMIT_TOKENS))
