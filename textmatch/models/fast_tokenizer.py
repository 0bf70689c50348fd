"""A text as a model reads it. Free of torch, for code that only passes it on.

Texts to token ids by a Rust tokenizer. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tokenizers import Tokenizer

Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text, or a pair of texts, as the model reads it, special tokens included."""

    ids: Sequence[int]
    # Which of the two texts of a pair a token belongs to; None for single texts.
    type_ids: Sequence[int] | None
    # Whether the end was cut off.
    truncated: bool
    is_query: bool

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)


class RustTokenizer:
    """Cuts texts to `max_tokens`; safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, truncation_side: str) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first", direction=truncation_side)

    def tokenize(self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool) -> list[TokenizedText]:
        """One tokenized text for each; of pairs that are too long, the longer text is cut first."""
        are_pairs = bool(texts) and not isinstance(texts[0], str)
        return [
            TokenizedText(
                ids=encoding.ids,
                type_ids=encoding.type_ids if are_pairs else None,
                truncated=bool(encoding.overflowing),
                is_query=is_query,
            )
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]
