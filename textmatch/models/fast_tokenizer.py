"""Texts to token ids with a Rust tokenizer from `tokenizers`. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tokenizers import Tokenizer

Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The token ids of a text or of a pair of texts, special tokens included."""

    ids: Sequence[int]
    # 0 or 1 for each token: its text within the pair. None for single texts.
    type_ids: Sequence[int] | None
    # Whether the text was longer than the model reads.
    truncated: bool
    is_query: bool

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)


class FastTokenizer:
    """Truncates texts to `max_tokens`; safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, truncation_side: str) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first", direction=truncation_side)

    def tokenize(self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool) -> list[TokenizedText]:
        """Tokenize each text or pair; in a pair that is too long, the longer text is truncated first."""
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


@dataclass(frozen=True)
class TokenizerDescription:
    """A Rust tokenizer as JSON, and the model's own limit of tokens."""

    content: str
    truncation_side: str
    max_tokens: int

    def make(self, max_tokens: int | None) -> FastTokenizer:
        """Make the tokenizer, which truncates to `max_tokens` if that is less than the model's own limit."""
        limit = min(self.max_tokens, max_tokens or self.max_tokens)
        return FastTokenizer(Tokenizer.from_str(self.content), limit, self.truncation_side)
