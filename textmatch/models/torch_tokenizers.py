"""The tokenizers of models that torch loads: texts to token ids, and token ids to padded tensors.

    tokenizer = input_tokenizer(model[0], max_tokens=None)
    batch = tokenizer.tokenize(["a text"], is_query=True, prompt="query: ")
    model(tokenizer.collate(batch))

A transformer's texts are tokenized by its Rust tokenizer if that gives what sentence-transformers feeds the
model. Otherwise, as for models with a chat template, sentence-transformers itself tokenizes them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, WordEmbeddings
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from textmatch.models.fast_tokenizer import (
    FastTokenizer,
    Pair,
    TokenizedText,
    TokenizerDescription,
    truncation_side,
)
from textmatch.models.model_resolver import UnusableModel
from textmatch.models.packing import position_limit
from textmatch.types import Truncation

# For models without a limit. A text of the largest size allowed has fewer tokens.
_NO_LIMIT_TOKENS = 32_768
# Kernels are compiled for each shape: with fewer shapes a CPU computes 25 % more tokens in less memory.
_WIDTH_STEP = 8

_PROBE = ("How do I delete a folder?", "naïve CAFÉ 猫坐在 🙂 ‘x’", " two  spaces\n", "the cat " * 40)


class InputTokenizer(Protocol):
    """Tokenizes for a model's first module. Safe to call from several threads."""

    max_tokens: int

    def tokenize(
        self,
        texts: Sequence[str] | Sequence[Pair],
        *,
        is_query: bool,
        prompt: str = "",
        truncation: Truncation | None = None,
    ) -> list[TokenizedText]:
        """Tokenize each text or pair, after a prompt, truncated to `max_tokens`.

        `truncation` None truncates as the model's own tokenizer does.
        """
        ...

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Any]:
        """Convert a batch to the inputs of the module."""
        ...

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens at the beginning of a text that belong to the prompt, as sentence-transformers counts."""
        ...


def input_tokenizer(
    module: nn.Module, max_tokens: int | None, *, task: str | None = None, reads_pairs: bool = False
) -> InputTokenizer:
    """The tokenizer of a model's first module.

    Args:
        module: the first module.
        max_tokens: truncate texts to this if the model itself reads more.
        task: "query" or "document" of a bi-encoder.
        reads_pairs: whether the model scores pairs.

    Raises:
        UnusableModel: the module does not read texts, or has no tokenizer that can be used.
    """
    if isinstance(module, Transformer) and module.tokenizer is not None:
        library = LibraryTokenizer(module, max_tokens, task)
        is_plain = (
            isinstance(module.processor, PreTrainedTokenizerFast) and "message" not in module.modality_config
        )
        # Lengths by task would need a Rust tokenizer for each.
        if is_plain and module.query_length is None and module.document_length is None:
            return _checked_against(library, module, reads_pairs=reads_pairs)
        return library
    if isinstance(module, WordEmbeddings):
        return WordTokenizer(module.tokenizer, _limit(module.max_seq_length, max_tokens))
    if isinstance(module, StaticEmbedding):
        return BagTokenizer(module.tokenizer, _limit(None, max_tokens))
    raise UnusableModel(f"input modules of type {type(module).__name__} are not supported")


def gives_last_states(module: Transformer, tokenizer: InputTokenizer) -> bool:
    """Whether the module's output are the states of its model's last layer, and nothing else."""
    modality = tokenizer.collate(tokenizer.tokenize(["a"], is_query=False)).get("modality", "text")
    output = module.modality_config[modality]["method_output_name"]
    return (
        output in ("last_hidden_state", ("last_hidden_state",))
        and not module.model.config.output_hidden_states
    )


def _checked_against(library: LibraryTokenizer, module: Transformer, *, reads_pairs: bool) -> InputTokenizer:
    """The Rust tokenizer if it agrees with sentence-transformers, else the latter."""
    texts = [*_PROBE[:-1], _PROBE[-1] * (1 + library.max_tokens // 80)]
    probe = list(zip(texts, [*texts[1:], texts[0]], strict=True)) if reads_pairs else texts
    try:
        expected = library.tokenize(probe, is_query=False)
    except Exception as error:  # tokenizers and templates fail in any way
        raise UnusableModel(f"its own library cannot tokenize with it: {error!r}") from error
    # Afterwards, because both change the settings of one Rust tokenizer.
    fast = TransformerTokenizer(library, module)
    found = fast.tokenize(probe, is_query=False)
    return fast if all(map(_are_equal, found, expected)) else library


def _are_equal(one: TokenizedText, other: TokenizedText) -> bool:
    types = [text.type_ids or [0] * text.token_count for text in (one, other)]
    return (list(one.ids), list(types[0]), one.truncated) == (
        list(other.ids),
        list(types[1]),
        other.truncated,
    )


class LibraryTokenizer:
    """The preprocessing of sentence-transformers: templates, instructions, special tokens."""

    def __init__(self, module: Transformer, max_tokens: int | None, task: str | None) -> None:
        self._module = module
        self._task = task
        lengths = {"query": module.query_length, "document": module.document_length}
        own = min(_limit(module.max_seq_length, None), _limit(lengths.get(task or ""), None))
        self.own_tokens = min(own, position_limit(module.model) or own)
        self.max_tokens = min(self.own_tokens, max_tokens or self.own_tokens)
        if module.query_expansion is not None:
            raise UnusableModel("query expansion is not supported")
        tokenizer: Any = module.tokenizer
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.pads_left = tokenizer.padding_side == "left"
        self.reads_type_ids = "token_type_ids" in tokenizer.model_input_names
        self.unknown_id: int | None = tokenizer.unk_token_id
        self.own_side: str = tokenizer.truncation_side
        # Tokenizers of transformers change their own settings in each call.
        self._lock = threading.Lock()
        # What the module reads in addition to tokens: the modality, and which logits are wanted.
        self.constants: dict[str, Any] = {}

    def tokenize(
        self,
        texts: Sequence[str] | Sequence[Pair],
        *,
        is_query: bool,
        prompt: str = "",
        truncation: Truncation | None = None,
    ) -> list[TokenizedText]:
        if not texts:
            return []
        rows = self._rows(texts, prompt, {"max_length": self.max_tokens}, truncation)
        # Only without truncation is it known whether a text of the largest length was truncated.
        full = [place for place, (ids, _) in enumerate(rows) if len(ids) >= self.max_tokens]
        whole = self._rows([texts[place] for place in full], prompt, {"truncation": False}) if full else []
        counts = {place: len(ids) for place, (ids, _) in zip(full, whole, strict=True)}
        too_long = {place: count for place, count in counts.items() if count > self.max_tokens}
        refused = too_long if truncation is Truncation.ERROR else {}
        return [
            TokenizedText(
                ids, type_ids, place in too_long, is_query, self._count_unknown(ids), refused.get(place)
            )
            for place, (ids, type_ids) in enumerate(rows)
        ]

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Any]:
        width = max(text.token_count for text in batch)
        # On the left, padding moves texts to other positions.
        if not self.pads_left:
            width = max(width, min(self.max_tokens, -(-width // _WIDTH_STEP) * _WIDTH_STEP))
        shape = (len(batch), width)
        features = {
            "input_ids": np.full(shape, self.pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        if self.reads_type_ids:
            features["token_type_ids"] = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(batch):
            span = slice(width - text.token_count, width) if self.pads_left else slice(text.token_count)
            features["input_ids"][row, span] = text.ids
            features["attention_mask"][row, span] = 1
            if self.reads_type_ids and text.type_ids is not None:
                features["token_type_ids"][row, span] = text.type_ids
        return {name: torch.from_numpy(values) for name, values in features.items()} | self.constants

    def count_prompt_tokens(self, prompt: str) -> int:
        # Prompts in a chat template are not counted, and are pooled.
        if "message" in self._module.modality_config:
            return 0
        (ids, _), *_ = self._rows([prompt], "", {"max_length": self.max_tokens})
        tokenizer: Any = self._module.tokenizer
        return len(ids) - 1 if ids[-1] in tokenizer.all_special_ids else len(ids)

    def _rows(
        self, texts: Sequence[Any], prompt: str, options: dict[str, Any], truncation: Truncation | None = None
    ) -> list[tuple[list[int], list[int] | None]]:
        """Ids and type ids of each text, without padding."""
        task = {"task": self._task} if self._task else {}
        tokenizer: Any = self._module.tokenizer
        with self._lock:
            tokenizer.truncation_side = truncation_side(truncation, self.own_side)
            features = self._module.preprocess(
                list(texts), prompt=prompt or None, processing_kwargs={"text": options}, **task
            )
        self.constants = {
            name: value
            for name, value in features.items()
            if not isinstance(value, Tensor) and name != "prompt_length"
        }
        mask = features["attention_mask"].bool()
        types = features.get("token_type_ids")
        return [
            (ids[kept].tolist(), None if of_row is None else of_row[kept].tolist())
            for ids, of_row, kept in zip(
                features["input_ids"], repeat(None) if types is None else types, mask, strict=False
            )
        ]

    def _count_unknown(self, ids: Sequence[int]) -> int:
        return 0 if self.unknown_id is None else ids.count(self.unknown_id)


class TransformerTokenizer:
    """The Rust tokenizer of a transformer; `library` is what it agrees with."""

    def __init__(self, library: LibraryTokenizer, module: Transformer) -> None:
        tokenizer: Any = module.tokenizer
        self._library = library
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._description = TokenizerDescription(
            content="",
            truncation_side=library.own_side,
            max_tokens=library.own_tokens,
            unknown_id=library.unknown_id,
            reads_type_ids=library.reads_type_ids,
        )
        self.max_tokens = library.max_tokens
        self._fast = FastTokenizer(
            self._backend,
            library.max_tokens,
            library.own_side,
            library.unknown_id,
            reads_type_ids=library.reads_type_ids,
        )

    def tokenize(
        self,
        texts: Sequence[str] | Sequence[Pair],
        *,
        is_query: bool,
        prompt: str = "",
        truncation: Truncation | None = None,
    ) -> list[TokenizedText]:
        return self._fast.tokenize(texts, is_query=is_query, prompt=prompt, truncation=truncation)

    def describe(self) -> TokenizerDescription:
        """The tokenizer for use without torch."""
        return replace(self._description, content=self._backend.to_str())

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Any]:
        return self._library.collate(batch)

    def count_prompt_tokens(self, prompt: str) -> int:
        ids = self._fast.tokenize([prompt], is_query=True)[0].ids
        return len(ids) - 1 if ids[-1] in self._special_ids else len(ids)


class WordTokenizer:
    """The word tokenizer of a table of word embeddings."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer

    def tokenize(
        self,
        texts: Sequence[str] | Sequence[Pair],
        *,
        is_query: bool,
        prompt: str = "",
        truncation: Truncation | None = None,
    ) -> list[TokenizedText]:
        ids_of_texts = (self._tokenizer.tokenize(prompt + str(text)) for text in texts)
        return [_cut(ids, self.max_tokens, is_query, truncation) for ids in ids_of_texts]

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Any]:
        shape = (len(batch), max(1, *(text.token_count for text in batch)))
        input_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(batch):
            input_ids[row, : text.token_count] = text.ids
            mask[row, : text.token_count] = 1
        return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}

    def count_prompt_tokens(self, prompt: str) -> int:
        return len(self._tokenizer.tokenize(prompt))


class BagTokenizer:
    """The tokenizer of a bag of token embeddings, which needs no padding."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer

    def tokenize(
        self,
        texts: Sequence[str] | Sequence[Pair],
        *,
        is_query: bool,
        prompt: str = "",
        truncation: Truncation | None = None,
    ) -> list[TokenizedText]:
        prompted = [prompt + str(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(prompted, add_special_tokens=False)
        return [_cut(encoding.ids, self.max_tokens, is_query, truncation) for encoding in encodings]

    def collate(self, batch: Sequence[TokenizedText]) -> dict[str, Any]:
        ends: NDArray[np.int64] = np.cumsum([text.token_count for text in batch], dtype=np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        input_ids = np.concatenate([np.asarray(text.ids, dtype=np.int64) for text in batch])
        return {"input_ids": torch.from_numpy(input_ids), "offsets": torch.from_numpy(starts)}

    def count_prompt_tokens(self, prompt: str) -> int:
        return len(self._tokenizer.encode(prompt, add_special_tokens=False).ids)


def _cut(ids: Sequence[int], max_tokens: int, is_query: bool, truncation: Truncation | None) -> TokenizedText:
    is_truncated = len(ids) > max_tokens
    kept = ids[-max_tokens:] if truncation is Truncation.START else ids[:max_tokens]
    whole_count = len(ids) if is_truncated and truncation is Truncation.ERROR else None
    return TokenizedText(kept, None, is_truncated, is_query, whole_count=whole_count)


def _limit(own_tokens: float | None, max_tokens: int | None) -> int:
    return int(min(own_tokens or _NO_LIMIT_TOKENS, max_tokens or _NO_LIMIT_TOKENS, _NO_LIMIT_TOKENS))
