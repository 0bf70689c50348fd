"""Texts to token ids with a Rust tokenizer from `tokenizers`. Free of torch.

A text of 32 KB has some 8,000 tokens, of which most models read 512. It is cut before it is tokenized, which
takes a fraction of the time. The tokens are exactly those of the whole text:

1. A text is cut only at a boundary that no token crosses: the tokens before it do not depend on the rest.
2. If the part before the cut does not fill the model's limit, a longer part or the whole text is tokenized.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from tokenizers import Encoding, Tokenizer

from textmatch.types import Truncation

Pair: TypeAlias = tuple[str, str]

# Most tokens have 3 to 5 bytes of UTF-8, in Chinese and in English.
_FIRST_CUT_BYTES_PER_TOKEN = 6
# If that is not enough, this many times as much is tokenized.
_LONGER_CUT = 4
# A boundary is searched for in this many characters before the wanted place.
_BOUNDARY_SEARCH_CHARACTERS = 256

_LEFT, _RIGHT = "left", "right"

_SPACES = (" ", "\n")
_FIRST_IDEOGRAPH, _LAST_IDEOGRAPH = "\u4e00", "\u9fff"
_IDEOGRAPHS = re.compile(f"[{_FIRST_IDEOGRAPH}-{_LAST_IDEOGRAPH}]{{2,}}")
# They change a character, or a character with its combining marks, whatever follows.
_LOCAL_NORMALIZERS = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Strip",
    "StripAccents",
}  # fmt: skip
# Regular expressions that match one character, or a run of spaces.
_LOCAL_PATTERN = re.compile(r"\[[^\[\]]*\]| \{2,\}| \+|\\s\+?")
_LOCAL_PRE_TOKENIZERS = {
    "BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit",
}  # fmt: skip


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
    # Tokens of the whole text, which must be refused because it has too many. None: it is not refused.
    whole_count: int | None = None

    @property
    def token_count(self) -> int:
        """Tokens that the model reads."""
        return len(self.ids)


def truncation_side(truncation: Truncation | None, own_side: str) -> str:
    """The side of a long text that is cut, "left" or "right".

    None: the side that the model's own tokenizer cuts. Of a text that is refused, the tokens do not matter.
    """
    if truncation is None:
        return own_side
    return _LEFT if truncation is Truncation.START else _RIGHT


class _Boundaries:
    """Where texts can be cut: the tokens of the part before a boundary do not depend on what follows.

    Only kinds of normalizers and pre-tokenizers are used that are known not to look ahead. Other tokenizers
    have no boundaries, and get whole texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        is_known = _is_local(tokenizer) and not any(map(_crosses_boundary, _added_tokens(tokenizer)))
        # Between a letter or digit and one of these.
        self._spaces = {space for space in _SPACES if is_known and _splits(tokenizer, f"a{space}b")}
        # Pairs of ideographs that may share a token. None: there is no boundary between any two.
        self._joined: frozenset[str] | None = _joined_ideographs(tokenizer) if is_known else None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._spaces) or self._joined is not None

    def last(self, text: str, end: int) -> int | None:
        """The last boundary up to `end`, which is within the text; None if there is none near."""
        places = range(end, max(0, end - _BOUNDARY_SEARCH_CHARACTERS), -1)
        return next((place for place in places if self._is_boundary(text[place - 1], text[place])), None)

    def _is_boundary(self, before: str, after: str) -> bool:
        if after in self._spaces:
            return before.isalnum()
        return (
            self._joined is not None
            and _FIRST_IDEOGRAPH <= before <= _LAST_IDEOGRAPH
            and _FIRST_IDEOGRAPH <= after <= _LAST_IDEOGRAPH
            and before + after not in self._joined
        )


def _is_local(tokenizer: Tokenizer) -> bool:
    """Whether neither normalizer nor pre-tokenizer looks at the text after a boundary."""
    normalizers, pre_tokenizers = _steps(tokenizer.normalizer), _steps(tokenizer.pre_tokenizer)
    return all(map(_is_local_normalizer, normalizers)) and all(
        step["type"] in _LOCAL_PRE_TOKENIZERS for step in pre_tokenizers
    )


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer as JSON; of a sequence, each of its parts."""
    pending = [] if component is None else [json.loads(component.__getstate__())]
    while pending:
        step = pending.pop()
        parts = step.get("normalizers") or step.get("pretokenizers")
        if step["type"] == "Sequence" and parts is not None:
            pending += parts
        else:
            yield step


def _is_local_normalizer(step: dict[str, Any]) -> bool:
    if step["type"] != "Replace":
        return step["type"] in _LOCAL_NORMALIZERS
    pattern = step["pattern"]
    if "Regex" in pattern:
        return _LOCAL_PATTERN.fullmatch(pattern["Regex"]) is not None
    text: str = pattern["String"]
    # A boundary is next to a letter, a digit or a space: the text must not contain any of them.
    return len(text) == 1 or not any(character.isalnum() or character.isspace() for character in text)


def _added_tokens(tokenizer: Tokenizer) -> list[Any]:
    return list(tokenizer.get_added_tokens_decoder().values())


def _crosses_boundary(added: Any) -> bool:
    """Whether an added token may contain a boundary, or depends on the character after it."""
    content: str = added.content
    has_space = any(map(str.isspace, content)) and not content.isspace()
    return added.single_word or has_space or _IDEOGRAPHS.search(content) is not None


def _splits(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the tokenizer splits the text after its first character."""
    if tokenizer.pre_tokenizer is None:
        return False
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normalized)
    # Some write a space before the first word, as one of two characters.
    return len(pieces) > 1 and pieces[0][0].lstrip("\u2581\u0120") == text[0]


def _joined_ideographs(tokenizer: Tokenizer) -> frozenset[str] | None:
    if _splits(tokenizer, _FIRST_IDEOGRAPH * 2):
        return frozenset()
    if type(tokenizer.model).__name__ != "Unigram":
        return None
    ideographs = "".join(map(chr, range(ord(_FIRST_IDEOGRAPH), ord(_LAST_IDEOGRAPH) + 1)))
    if tokenizer.normalizer and ideographs not in tokenizer.normalizer.normalize_str(ideographs):
        return None
    # The best split of a text goes through each place that no piece contains.
    runs = _IDEOGRAPHS.findall("\n".join(tokenizer.get_vocab(with_added_tokens=False)))
    return frozenset(run[at : at + 2] for run in runs for at in range(len(run) - 1))


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
        self._own_side = truncation_side
        self._unknown_id = unknown_id
        self._reads_type_ids = reads_type_ids
        tokenizer.no_padding()
        self._whole = _with_same_vocabulary(tokenizer)
        other_side = _LEFT if truncation_side == _RIGHT else _RIGHT
        self._by_side = {truncation_side: tokenizer, other_side: _with_same_vocabulary(tokenizer)}
        for side, of_side in self._by_side.items():
            of_side.enable_truncation(max_tokens, strategy="longest_first", direction=side)
        self._boundaries = _Boundaries(tokenizer)

    def tokenize(
        self,
        texts: Sequence[str] | Sequence[Pair],
        *,
        is_query: bool,
        prompt: str = "",
        truncation: Truncation | None = None,
    ) -> list[TokenizedText]:
        """Tokenize each text or pair after a prompt; of a pair, the longer text is truncated first."""
        has_types = self._reads_type_ids and bool(texts) and not isinstance(texts[0], str)
        prompted = [_after(prompt, text) for text in texts] if prompt else texts
        side = truncation_side(truncation, self._own_side)
        return [
            TokenizedText(
                ids=(ids := encoding.ids),
                type_ids=encoding.type_ids if has_types else None,
                truncated=(is_truncated := bool(encoding.overflowing)),
                is_query=is_query,
                unknown_count=0 if self._unknown_id is None else ids.count(self._unknown_id),
                whole_count=self._count(text) if is_truncated and truncation is Truncation.ERROR else None,
            )
            for text, encoding in zip(prompted, self._encode(prompted, side), strict=True)
        ]

    def _count(self, text: str | Pair) -> int:
        """The tokens of a whole text or pair."""
        (encoding,) = self._whole.encode_batch_fast([text])
        return len(encoding)

    def _encode(self, texts: Sequence[str | Pair], side: str) -> list[Encoding]:
        """Encode as much of each text as it takes to know the tokens of the whole text."""
        if side == _LEFT:
            return self._by_side[side].encode_batch_fast(texts)
        encoded: dict[int, Encoding] = {}
        pending: Sequence[int] = range(len(texts))
        size_bytes = _FIRST_CUT_BYTES_PER_TOKEN * self.max_tokens
        while pending:
            shortened = [self._shortened(texts[position], size_bytes) for position in pending]
            encodings = self._by_side[side].encode_batch_fast(shortened)
            encoded |= {
                position: encoding
                for position, given, encoding in zip(pending, shortened, encodings, strict=True)
                if _is_settled(texts[position], given, encoding)
            }
            pending = [position for position in pending if position not in encoded]
            size_bytes *= _LONGER_CUT
        return [encoded[position] for position in range(len(texts))]

    def _shortened(self, text: str | Pair, size_bytes: int) -> str | Pair:
        if isinstance(text, str):
            return self._cut(text, size_bytes)
        first, second = text
        return self._cut(first, size_bytes), self._cut(second, size_bytes)

    def _cut(self, text: str, size_bytes: int) -> str:
        """The text up to a boundary after about `size_bytes`; the whole text if there is none near."""
        # At most 4 bytes a character.
        if not self._boundaries or 4 * len(text) <= size_bytes:
            return text
        text_bytes = len(text) if text.isascii() else len(text.encode())
        end = len(text) * size_bytes // text_bytes
        if end >= len(text):
            return text
        return text[: self._boundaries.last(text, end)]


def _with_same_vocabulary(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with truncation of its own. Both share the vocabulary, which takes hundreds of MB."""
    other = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (of_tokenizer := getattr(tokenizer, part)) is not None:
            setattr(other, part, of_tokenizer)
    for _, added in sorted(tokenizer.get_added_tokens_decoder().items()):
        add = other.add_special_tokens if added.special else other.add_tokens
        add([added])
    if other.get_added_tokens_decoder() == tokenizer.get_added_tokens_decoder():
        return other
    # The ids of added tokens have gaps.
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    return whole


def _is_settled(text: str | Pair, given: str | Pair, encoding: Encoding) -> bool:
    """Whether the encoding of a shortened text is that of the whole text.

    A single text must fill the limit. In a pair, the longer text is truncated first. Which one is longer must
    not depend on what was cut off.
    """
    if isinstance(text, str):
        return len(given) == len(text) or bool(encoding.overflowing)
    is_cut = [len(shortened) < len(whole) for shortened, whole in zip(given, text, strict=True)]
    if not any(is_cut):
        return True
    if not encoding.overflowing:
        return False
    kept = [encoding.sequence_ids.count(sequence) for sequence in (0, 1)]
    # An odd limit leaves one token more to the longer text.
    is_odd = sum(kept) % 2
    return all(kept[one] >= kept[other] + is_odd for one, other in ((0, 1), (1, 0)) if is_cut[one])


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
