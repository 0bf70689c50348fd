from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.packing import (
    ROW_WIDTHS,
    AttentionForm,
    NotPackable,
    PackedModel,
    PackedRows,
    PackingCheck,
    arrays,
    attention_window,
    pack,
    position_limit,
)

PAD_ID = 0


def tokenized(token_counts: list[int]) -> list[TokenizedText]:
    """Texts whose ids tell them apart."""
    return [
        TokenizedText([1 + number] * count, [number % 2] * count, truncated=False, is_query=False)
        for number, count in enumerate(token_counts)
    ]


def spans(rows: PackedRows) -> list[tuple[int, int, int]]:
    """(text, start, end) in the flattened rows."""
    return [
        (int(text), int(start), int(start + length))
        for text, start, length in zip(rows.texts, rows.starts, rows.lengths, strict=True)
    ]


def padding_share(packed: list[PackedRows]) -> float:
    """Places that hold no token, as a share of all places."""
    places = sum(rows.segments.size for rows in packed)
    tokens = sum(int(rows.lengths.sum()) for rows in packed)
    return 1.0 - tokens / places if places else 0.0


batches = st.lists(st.integers(1, 700), min_size=1, max_size=60)


@given(batches)
def test_every_text_stands_somewhere_once_and_whole(token_counts: list[int]):
    texts = tokenized(token_counts)
    packed = pack(texts, PAD_ID)
    assert sorted(text for rows in packed for text, _, _ in spans(rows)) == list(range(len(texts)))
    for rows in packed:
        width = rows.input_ids.shape[1]
        ids, types = rows.input_ids.reshape(-1), rows.type_ids.reshape(-1)
        positions = rows.position_ids.reshape(-1)
        for text, start, end in spans(rows):
            assert ids[start:end].tolist() == texts[text].ids
            assert types[start:end].tolist() == texts[text].type_ids
            assert positions[start:end].tolist() == list(range(end - start))
            assert start // width == (end - 1) // width, "a text never goes over the end of a row"


@given(batches)
def test_texts_of_a_row_have_segments_of_their_own(token_counts: list[int]):
    for rows in pack(tokenized(token_counts), PAD_ID):
        segments = rows.segments.reshape(-1)
        numbers = [set(segments[start:end].tolist()) for _, start, end in spans(rows)]
        assert all(len(own) == 1 for own in numbers)
        assert len(set.union(*numbers)) == len(numbers)
        assert 0 not in set.union(*numbers)
        assert (segments > 0).sum() == rows.lengths.sum()


@given(batches)
def test_owners_tell_the_text_of_each_place(token_counts: list[int]):
    for rows in pack(tokenized(token_counts), PAD_ID):
        for number, (_, start, end) in enumerate(spans(rows)):
            assert set(rows.owners[start:end].tolist()) == {number}
        assert (rows.owners == len(rows.texts)).sum() == rows.owners.size - rows.lengths.sum()


@given(batches)
def test_rows_have_few_widths(token_counts: list[int]):
    widths = {rows.input_ids.shape[1] for rows in pack(tokenized(token_counts), PAD_ID)}
    assert all(width in ROW_WIDTHS or width % ROW_WIDTHS[-1] == 0 for width in widths)


def test_many_texts_leave_next_to_no_padding():
    token_counts = np.random.default_rng(0).lognormal(3, 0.8, 500).astype(int).clip(3, 128)
    assert padding_share(pack(tokenized(token_counts.tolist()), PAD_ID)) < 0.06


def test_one_short_text_stands_in_a_short_row():
    [rows] = pack(tokenized([11]), PAD_ID)
    assert rows.input_ids.shape == (1, 16)


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def modernbert(**config: object) -> transformers.ModernBertModel:
    torch.manual_seed(0)
    values = {"local_attention": 16, "pad_token_id": 0, "initializer_range": 0.3, **SMALL, **config}
    return transformers.ModernBertModel(transformers.ModernBertConfig(vocab_size=99, **values)).eval()


def test_windows_are_found_and_kept():
    model = modernbert()
    window = attention_window(model)
    check = PackingCheck(model, max_tokens=80)
    assert check.form == AttentionForm(is_causal=False, reach=window, by_layer_type=True)
    texts = [TokenizedText([1 + at % 97 for at in range(n)], None, False, False) for n in (70, 20, 5)]
    with torch.inference_mode():
        for rows in pack(texts, 0):
            packed = PackedModel(model, check.form)
            states = packed(*map(torch.from_numpy, arrays(rows, check.position_offset))).reshape(-1, 32)
            for start, text in zip(rows.starts, (texts[at] for at in rows.texts), strict=True):
                alone = model(torch.tensor([text.ids])).last_hidden_state[0]
                assert torch.allclose(states[start : start + text.token_count], alone, atol=1e-4)


def test_a_check_sees_a_window_that_is_not_kept():
    check = PackingCheck(modernbert(), max_tokens=80)
    packed = PackedModel(modernbert(), AttentionForm())
    with torch.inference_mode():
        states = packed(*map(torch.from_numpy, arrays(check.rows, 0))).numpy()
    with pytest.raises(NotPackable, match="differ from torch's"):
        check.verify(states, "float32")


def test_a_window_that_no_text_reaches_needs_no_mask_of_its_own():
    check = PackingCheck(modernbert(local_attention=256), max_tokens=64)
    assert check.form == AttentionForm()


class WithoutVocabulary(torch.nn.Module):
    """An embedding, whose config does not say how large it is."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=None)
        self.table = torch.nn.Embedding(50, 8)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: object = None
    ) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def test_a_config_needs_no_vocabulary():
    assert PackingCheck(WithoutVocabulary()).position_offset == 0


def test_a_model_that_fails_is_not_packed():
    model = WithoutVocabulary()
    model.table = torch.nn.Linear(50, 8)
    with pytest.raises(NotPackable, match="does not run on random texts"):
        PackingCheck(model)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.BertConfig(max_position_embeddings=64, **SMALL), 64),
        (transformers.RobertaConfig(max_position_embeddings=66, pad_token_id=1, **SMALL), 64),
        (transformers.MPNetConfig(max_position_embeddings=66, pad_token_id=1, **SMALL), 64),
        (transformers.ModernBertConfig(pad_token_id=0, **SMALL), None),
    ],
)
def test_positions_begin_behind_the_padding_or_at_0(
    config: transformers.PreTrainedConfig, expected: int | None
):
    config.vocab_size = 99
    model = transformers.AutoModel.from_config(config).eval()
    assert position_limit(model) == expected
    assert int(PackingCheck(model, max_tokens=100).rows.lengths.max()) == (expected or 100)
