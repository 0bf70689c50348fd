"""Texts to token ids with a Rust tokenizer from `tokenizers`. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakValueDictionary

from tokenizers import Tokenizer

Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The token ids of a text or of a pair of texts, special tokens included."""

    ids: Sequence[int]
    # 0 or 1 for each token: its text within the pair. None for single texts, and if the model reads none.
    type_ids: Sequence[int] | None
    # Whether the text was longer than the model reads.
    truncated: bool
    is_query: bool
    # Tokens that stand for text that the model does not know; of most models, one for each unknown word.
    unknown_count: int = 0

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)


class FastTokenizer:
    """Truncates texts to `max_tokens`; safe to call from several threads.

    `unknown_id` is the id of the token for unknown text; None if the model knows everything. Without
    `reads_type_ids`, the model does not know which text of a pair a token is from.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        truncation_side: str,
        unknown_id: int | None,
        *,
        reads_type_ids: bool,
    ) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._unknown_id = unknown_id
        self._reads_type_ids = reads_type_ids
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first", direction=truncation_side)

    def tokenize(
        self, texts: Sequence[str] | Sequence[Pair], *, is_query: bool, prompt: str = ""
    ) -> list[TokenizedText]:
        """Tokenize each text or pair after a prompt; of a pair, the longer text is truncated first."""
        has_types = self._reads_type_ids and bool(texts) and not isinstance(texts[0], str)
        prompted = [_after(prompt, text) for text in texts] if prompt else list(texts)
        return [
            TokenizedText(
                ids=(ids := encoding.ids),
                type_ids=encoding.type_ids if has_types else None,
                truncated=bool(encoding.overflowing),
                is_query=is_query,
                unknown_count=0 if self._unknown_id is None else ids.count(self._unknown_id),
            )
            for encoding in self._tokenizer.encode_batch_fast(prompted)
        ]


def _after(prompt: str, text: str | Pair) -> str | Pair:
    return prompt + text if isinstance(text, str) else (prompt + text[0], text[1])


# Bi-encoder and cross-encoder of one base share their tokenizer, which takes 280 MB for 250,000 pieces.
_shared: WeakValueDictionary[tuple[TokenizerDescription, int], FastTokenizer] = WeakValueDictionary()


@dataclass(frozen=True)
class TokenizerDescription:
    """A Rust tokenizer as JSON, and the model's own limit of tokens."""

    content: str
    truncation_side: str
    max_tokens: int
    unknown_id: int | None
    reads_type_ids: bool

    def make(self, max_tokens: int | None) -> FastTokenizer:
        """Make the tokenizer, which truncates to `max_tokens` if that is less than the model's own limit.

        Equal descriptions share one tokenizer while it is in use.
        """
        limit = min(self.max_tokens, max_tokens or self.max_tokens)
        made = _shared.get((self, limit))
        if made is None:
            tokenizer = Tokenizer.from_str(self.content)
            made = _shared[self, limit] = FastTokenizer(
                tokenizer,
                limit,
                self.truncation_side,
                self.unknown_id,
                reads_type_ids=self.reads_type_ids,
            )
        return made
