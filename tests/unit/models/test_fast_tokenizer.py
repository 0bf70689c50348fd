"""Texts are cut before they are tokenized, and their tokens are those of the whole text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from textmatch.documents import MAX_TEXT_BYTES
from textmatch.models.fast_tokenizer import FastTokenizer, Pair
from textmatch.types import Truncation

_UNKNOWN = "<unk>"
_CORPUS = [
    "the cat sits on the mat and the dog runs in the park, where is it? ",
    "what is the document about: a query, an answer! don't 1234 2024 ",
    "猫坐在垫子上，看着窗外的风景。我们今天去公园吧。中国人民大学在北京。",
    "哈哈哈哈哈哈 哈哈哈 哈哈 好好好 你好你好 不不不不 ",
    "Ünïcode naïve café résumé Straße ΣΟΦΟΣ ",
] * 20
_PIECES = [
    "the cat sits ", "on the mat", " dog.", "naïve ", "e\u0301", "\u0301", "ﷺ", "ﬁ",
    "ß", "ΣΟΦΟΣ ", "１２３", "a", "x" * 120, "猫坐在垫子上", "，", "。", "我们今天去公园吧", "龘", "垫",
    "哈" * 7, "哈" * 8, "\U00020000", "豈", "字\ufe00", " ", "  ", " " * 300, "\n",
    "\n\n", "\t", "\r\n", "\u3000", "\u00a0", "\u200b" * 40, "\u00ad" * 40, "\ufeff",
    "\x01" * 40, "🙂", "🙂" * 60, "👩‍👩‍👧", "ไทย", "한국어 ", "각", "हिन्दी ", "[SEP]",
    "<mask>", " <mask> ", "don't", "...", "--", "``", "12345", "؀",
]  # fmt: skip

_LONG = {
    "Chinese": "猫坐在垫子上看着窗外的风景" * 800,
    "one ideograph": "哈" * 10_000,
    "two kinds of ideograph": "哈哈不好" * 2_501,
    "emoji": "🙂" * 8_000,
    "emoji with spaces": "🙂 " * 6_000,
    "spaces inside": "a" + " " * 30_000 + "b",
    "spaces first": " " * 30_000 + "the cat",
    "a long word first": "x" * 30_000 + " the cat",
    "combining marks": "e" + "\u0301" * 15_000 + " the cat",
    "characters that become spaces": "\u200b" * 10_000 + " the cat sits",
    "removed characters": "\u00ad" * 10_000 + "cat",
    "invisible spaces": "the\u200b" * 4_000 + " mat",
    "ligatures": "ﷺ" * 5_000,
    "lines": "the cat\n" * 3_500,
    "digits": "1234" * 8_000,
    "added tokens": "the cat sits " * 20 + "<mask> [SEP] " * 2_000,
}


def _word_pieces() -> Tokenizer:
    words = ["the", "cat", "sits", "on", "mat", "dog", *"猫坐在哈我公园.，"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789ß"
    vocabulary = [_UNKNOWN, "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*words, *characters])]
    vocabulary += [f"##{character}" for character in characters]
    numbered = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(vocab=numbered, unk_token=_UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([_UNKNOWN, "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def _unigram() -> Tokenizer:
    """As XLM-RoBERTa: pieces of Chinese words, of a whole sentence without spaces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex("[\\u0001-\\u0008\\u000b]"), ""),
            normalizers.Replace(Regex("[\\t\\n\\r\\u200b\\ufeff]"), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", _UNKNOWN, "<mask>"],
        unk_token=_UNKNOWN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return tokenizer


def _bytes() -> Tokenizer:
    """As RoBERTa and ModernBERT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return tokenizer


def _unsplit() -> Tokenizer:
    """As Gemma: pieces of whole texts, spaces included."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[_UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "word pieces": _word_pieces, "unigram": _unigram, "bytes": _bytes, "unsplit": _unsplit,
}  # fmt: skip


@cache
def _made(kind: str) -> str:
    return _KINDS[kind]().to_str()


texts = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=60).map("".join)
limits = st.sampled_from([8, 16, 17])
few_examples = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


class Recorded:
    """A tokenizer that counts the characters that it gets."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode_batch_fast(self, given: Sequence[str | Pair]) -> object:
        self.characters += sum(len(text) for text in given)
        return self._tokenizer.encode_batch_fast(given)


def _copy(kind: str) -> Tokenizer:
    return Tokenizer.from_str(_made(kind))


def _fast(kind: str, max_tokens: int) -> FastTokenizer:
    return FastTokenizer(_copy(kind), max_tokens, "right", unknown_id=None, reads_type_ids=True)


@cache
def _compared(kind: str, max_tokens: int, side: str) -> tuple[FastTokenizer, Tokenizer]:
    """The tokenizer, and one that always gets whole texts."""
    whole = _copy(kind)
    whole.enable_truncation(max_tokens, strategy="longest_first", direction=side)
    return FastTokenizer(_copy(kind), max_tokens, side, unknown_id=None, reads_type_ids=True), whole


def _check(
    kind: str,
    inputs: Sequence[str] | Sequence[Pair],
    max_tokens: int,
    side: str = "right",
    prompt: str = "",
) -> None:
    fast, whole = _compared(kind, max_tokens, side)
    tokenized = fast.tokenize(inputs, is_query=False, prompt=prompt)
    prompted = [prompt + one if isinstance(one, str) else (prompt + one[0], one[1]) for one in inputs]
    for found, expected in zip(tokenized, whole.encode_batch_fast(prompted), strict=True):
        assert list(found.ids) == expected.ids
        assert found.truncated == bool(expected.overflowing)
        if found.type_ids is not None:
            assert list(found.type_ids) == expected.type_ids


@pytest.mark.parametrize("kind", _KINDS)
@few_examples
@given(text=texts, other=texts, limit=limits)
def test_any_text_has_the_tokens_of_the_whole_text(kind: str, text: str, other: str, limit: int):
    _check(kind, [text, other * 3, text + other], limit)


@pytest.mark.parametrize("kind", _KINDS)
@few_examples
@given(text=texts, other=texts, limit=limits)
def test_any_pair_has_the_tokens_of_the_whole_pair(kind: str, text: str, other: str, limit: int):
    # What a tokenizer truncates of a pair, it keeps in all combinations.
    text, other = text[:400], other[:400]
    _check(kind, [(text, other), (other[:60], text * 3), (text * 3, other[:60]), (text, text)], limit)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("text", _LONG.values(), ids=_LONG)
def test_long_texts_of_one_kind_have_the_tokens_of_the_whole_text(kind: str, text: str):
    _check(kind, [text], 17)
    _check(kind, [text], 512)
    _check(kind, [(text, "the cat"), ("the cat", text), (text[:8_000], text[:8_000])], 512)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("word pieces", "the cat sits on the mat "),
        ("word pieces", "猫坐在垫子上"),
        ("unigram", "the cat sits on the mat "),
        ("unigram", "中国人民大学在北京我们今天去公园吧"),
        ("bytes", "the cat sits on the mat "),
        ("bytes", "the cat sits.\n"),
    ],
)
def test_only_a_small_part_of_a_long_text_is_tokenized(kind: str, text: str):
    long = text * (MAX_TEXT_BYTES // len(text.encode()))
    fast = _fast(kind, 64)
    recorded = fast._by_side["right"] = Recorded(fast._by_side["right"])
    (tokenized,) = fast.tokenize([long], is_query=False)
    assert (tokenized.token_count, tokenized.truncated) == (64, True)
    assert recorded.characters < len(long) / 10


def test_of_a_text_with_few_tokens_for_its_length_more_is_tokenized():
    # Longer words than the model knows are one token each.
    text = "the cat" + (" " + "x" * 110) * 280
    fast = _fast("word pieces", 64)
    recorded = fast._by_side["right"] = Recorded(fast._by_side["right"])
    (tokenized,) = fast.tokenize([text], is_query=False)
    assert tokenized.truncated
    assert len(text) / 4 < recorded.characters < 2 * len(text)
    _check("word pieces", [text], 64)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_prompt_is_read_before_a_text_that_is_cut(kind: str):
    prompt = "the dog: "
    _check(kind, ["the cat sits " * 500, "the cat"], 17, prompt=prompt)
    _check(kind, [("the cat sits " * 500, "the cat"), ("the cat", "on the mat " * 500)], 17, prompt=prompt)


def test_a_model_without_type_ids_gets_none():
    fast = FastTokenizer(_copy("word pieces"), 16, "right", unknown_id=None, reads_type_ids=False)
    assert fast.tokenize([("the cat", "sits " * 500)], is_query=False)[0].type_ids is None


def test_a_text_truncated_at_its_start_is_read_whole():
    text = "the cat sits " * 500 + "on the mat"
    _check("word pieces", [text], 16, side="left")


_TOO_LONG = ("the cat sits on the mat " * 40 + "a dog", ("the cat", "the mat sits " * 40 + "a dog"))


@pytest.mark.parametrize("own_side", ["left", "right"])
@pytest.mark.parametrize("given", ["the cat", *_TOO_LONG])
@pytest.mark.parametrize("kind", _KINDS)
def test_a_caller_chooses_the_side_whatever_the_models_own_is(kind: str, given: str | Pair, own_side: str):
    fast, _ = _compared(kind, 16, own_side)
    for truncation, side in ((Truncation.START, "left"), (Truncation.END, "right"), (None, own_side)):
        _, whole = _compared(kind, 16, side)
        (found,) = fast.tokenize([given], is_query=False, truncation=truncation)
        (expected,) = whole.encode_batch_fast([given])
        assert list(found.ids) == expected.ids
        assert (found.truncated, found.whole_count) == (bool(expected.overflowing), None)


@pytest.mark.parametrize("given", _TOO_LONG)
@pytest.mark.parametrize("kind", _KINDS)
def test_the_tokens_of_a_text_to_be_refused_are_counted(kind: str, given: str | Pair):
    fast, _ = _compared(kind, 16, "right")
    whole = _copy(kind)
    whole.no_truncation()
    (counted,) = fast.tokenize([given], is_query=False, truncation=Truncation.ERROR)
    (expected,) = whole.encode_batch_fast([given])
    assert (counted.whole_count, counted.token_count) == (len(expected.ids), 16)
    short = "the cat" if isinstance(given, str) else ("the cat", "the dog")
    (fits,) = fast.tokenize([short], is_query=False, truncation=Truncation.ERROR)
    assert (fits.whole_count, fits.truncated) == (None, False)


def test_added_tokens_are_the_same_on_both_sides():
    tokenizer = _copy("word pieces")
    tokenizer.add_special_tokens(["<one>", "<two>"])
    tokenizer.add_tokens(["catdog"])
    fast = FastTokenizer(tokenizer, 16, "right", unknown_id=None, reads_type_ids=True)
    given = ["the catdog <two> sits"]
    (right,), (left,) = (
        fast.tokenize(given, is_query=False, truncation=one) for one in (Truncation.END, Truncation.START)
    )
    assert list(left.ids) == list(right.ids)


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens(["cat sits"]),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Replace(Regex("t (?=d)"), "d")),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Split(Regex("a s"), "isolated")),
    ],
    ids=["added token", "normalizer", "pre-tokenizer"],
)
def test_a_tokenizer_that_may_look_ahead_gets_whole_texts(change: Callable[[Tokenizer], object]):
    tokenizer = _copy("word pieces")
    change(tokenizer)
    fast = FastTokenizer(tokenizer, 16, "right", unknown_id=None, reads_type_ids=True)
    recorded = fast._by_side["right"] = Recorded(fast._by_side["right"])
    text = "the cat sits dog " * 500
    fast.tokenize([text], is_query=False)
    assert recorded.characters == len(text)


def test_no_texts():
    assert _fast("word pieces", 16).tokenize([], is_query=False) == []
