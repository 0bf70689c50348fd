"""Tokenizers of the tiny models: some words, and all characters that the tests write."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    "the", "a", "cat", "dog", "sits", "on", "mat", "runs", "in", "park", "find", "text", "what", "is",
    "where", "query", "passage", "how", "yes", "no", "bird", "sings", "under", "tree", "blue", "red", "old",
    "new", "house", "river",
)  # fmt: skip
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-<>|_/\n猫狗坐"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_CHAT_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[UNK]")
_CHAT_NAMES = {"unk_token": "[UNK]", "pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def bert_tokenizer(*, type_ids: bool = True, side: str = "right") -> PreTrainedTokenizerFast:
    """WordPiece: `[CLS] first [SEP] second [SEP]`."""
    tokenizer = Tokenizer(models.WordPiece(_ids(_SPECIAL), unk_token=_SPECIAL[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    inputs = ["input_ids", *(["token_type_ids"] if type_ids else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(
            zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIAL, strict=True)
        ),
        model_input_names=inputs,
        padding_side=side,
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Words and characters: `<s> first </s></s> second </s>`, with 1 for padding."""
    start, pad, end, unknown, mask = _ROBERTA_SPECIAL
    return _plain_tokenizer(_ROBERTA_SPECIAL, (start, end, pad, unknown), mask)


def _plain_tokenizer(
    special: tuple[str, ...], named: tuple[str, str, str, str], mask: str
) -> PreTrainedTokenizerFast:
    start, end, pad, unknown = named
    ids = _ids(special)
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(start, ids[start]), (end, ids[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        cls_token=start,
        sep_token=end,
        pad_token=pad,
        unk_token=unknown,
        mask_token=mask,
        model_input_names=["input_ids", "attention_mask"],
    )


def decoder_tokenizer(template: str = "", *, side: str = "left") -> PreTrainedTokenizerFast:
    """Words and characters, then `<|endoftext|>`; with a chat template if one is given."""
    tokenizer = Tokenizer(models.WordPiece(_ids(_CHAT_SPECIAL), unk_token=_SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_CHAT_SPECIAL))
    if not template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **_CHAT_NAMES,
        chat_template=template or None,
        model_input_names=["input_ids", "attention_mask"],
        padding_side=side,
    )


def _ids(special: tuple[str, ...]) -> dict[str, int]:
    """Ids of special tokens, words and characters, in this order."""
    pieces = [*special, *WORDS, *_CHARACTERS.replace("\n", ""), *(f"##{one}" for one in _CHARACTERS.strip())]
    return {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
