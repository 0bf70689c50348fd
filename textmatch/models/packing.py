"""Packed rows: many texts in rows of one width, and transformers that read them.

Texts are concatenated in a row, which leaves almost no padding in a forward pass. Positions start at 0 in
each text. Attention stays within a text, because a place attends only to places with the same segment
number; the padding at the end of a row is a segment of its own. Rows have one of a few widths, because
engines prepare for each shape.

This works for transformers whose attention mask may be a whole matrix, bidirectional or causal, with or
without windows: BERT, RoBERTa, XLM-R, DistilBERT, ALBERT, MPNet, ELECTRA, T5, ModernBERT, Gemma, Qwen,
Mistral.
`PackingCheck` tests each model instead of using a list: its states of packed texts must equal those of each
text alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from textmatch.models.fast_tokenizer import TokenizedText

# Short rows make single queries fast. For many texts, attention and padding together cost least at 128.
ROW_WIDTHS = (16, 32, 64, 128, 256, 512)
_FULL_ROW = 128

# Far below every attention score, and within the range of bfloat16.
_MASKED = -1e9
# Share of a state's length. A wrong position or mask changes states by far more.
_TOLERANCE = 5e-4
# Cosine between a token's states in the engine's precision and in float32.
_MIN_COSINE, _MIN_COSINE_FLOAT32, _TYPICAL = 0.99, 0.99999, 0.05
# Tokens of the texts of a check. The longest is limited by what the model reads.
_CHECK_LENGTHS, _LONG_CHECK = (7, 23, 12), 512

# Tables of learned positions, as models name them.
_POSITION_TABLES = ("position_embeddings", "wpe")
# Types of layers, as transformers names them.
_FULL, _SLIDING = "full_attention", "sliding_attention"
_WINDOWED = (_SLIDING, "chunked_attention")

# What models raise for arguments that they do not expect.
_MODEL_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)

Ids = NDArray[np.int64]
States = NDArray[np.float32]


class NotPackable(Exception):
    """The model cannot run on packed rows; the message says why."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of one width. Arrays are (rows, width) int64; those of the texts are (count,)."""

    input_ids: Ids
    position_ids: Ids  # from 0 in each text
    type_ids: Ids
    segments: Ids  # 0 is padding, 1 the first text of a row
    # The texts in these rows, as indices into the batch, and their places in the flattened rows.
    texts: Ids
    starts: Ids
    lengths: Ids

    @property
    def owners(self) -> Ids:
        """(rows * width,): the index into `texts` of each place; padding has the index `len(texts)`."""
        numbers = self.segments.reshape(-1) - 1
        return np.where(numbers < 0, len(self.texts), numbers)


def pack(batch: Sequence[TokenizedText], pad_id: int) -> list[PackedRows]:
    """Pack a batch by first fit, into one PackedRows for each width that is needed.

    Long texts go into wide rows; short texts fill the room that is left there.
    """
    token_counts = np.array([text.token_count for text in batch], dtype=np.int64)
    short = np.flatnonzero(token_counts <= _FULL_ROW)
    longer = np.flatnonzero(token_counts > _FULL_ROW)
    widths = np.array([_width(int(token_counts[one])) for one in longer], dtype=np.int64)
    packed = []
    for width in np.unique(widths).tolist():
        own = longer[widths == width]
        row_count = int(_first_fit(token_counts[own], width)[:, 0].max()) + 1
        candidates = np.concatenate([own, short])
        places = _first_fit(token_counts[candidates], width, row_limit=row_count)
        has_place = places[:, 0] >= 0
        packed.append(_fill(batch, candidates[has_place], places[has_place], width, pad_id))
        short = candidates[~has_place]
    if short.size:
        width = min(_FULL_ROW, _width(int(token_counts[short].sum())))
        packed.append(_fill(batch, short, _first_fit(token_counts[short], width), width, pad_id))
    return packed


def _width(token_count: int) -> int:
    """The smallest width that holds this many tokens; beyond the largest, the next multiple of it."""
    largest = ROW_WIDTHS[-1]
    return next((width for width in ROW_WIDTHS if width >= token_count), -(-token_count // largest) * largest)


def _fill(batch: Sequence[TokenizedText], chosen: Ids, places: Ids, width: int, pad_id: int) -> PackedRows:
    row_count = int(places[:, 0].max()) + 1
    rows = PackedRows(
        input_ids=np.full((row_count, width), pad_id, dtype=np.int64),
        position_ids=np.zeros((row_count, width), dtype=np.int64),
        type_ids=np.zeros((row_count, width), dtype=np.int64),
        segments=np.zeros((row_count, width), dtype=np.int64),
        texts=chosen,
        starts=places[:, 0] * width + places[:, 1],
        lengths=np.array([batch[text].token_count for text in chosen], dtype=np.int64),
    )
    positions = np.arange(width, dtype=np.int64)
    for number, (row, column) in enumerate(places.tolist()):
        text = batch[chosen[number]]
        span = slice(column, column + text.token_count)
        rows.input_ids[row, span] = text.ids
        rows.position_ids[row, span] = positions[: text.token_count]
        rows.segments[row, span] = number + 1
        if text.type_ids is not None:
            rows.type_ids[row, span] = text.type_ids
    return rows


def _first_fit(token_counts: Ids, width: int, row_limit: int | None = None) -> Ids:
    """(count, 2): row and column of each text, longest placed first; -1 where the limit leaves no room."""
    places = np.full((len(token_counts), 2), -1, dtype=np.int64)
    used: list[int] = []
    # Rows before this one are too full for any of the remaining texts.
    first_open = 0
    shortest = int(token_counts.min())
    for number in np.argsort(-token_counts, kind="stable").tolist():
        length = int(token_counts[number])
        row = next((row for row in range(first_open, len(used)) if used[row] + length <= width), len(used))
        if row == len(used):
            if row == row_limit:
                continue
            used.append(0)
        places[number] = row, used[row]
        used[row] += length
        while first_open < len(used) and used[first_open] + shortest > width:
            first_open += 1
    return places


@dataclass(frozen=True)
class AttentionForm:
    """Which tokens of its own text a token attends to.

    Attributes:
        is_causal: only to itself and to tokens before it.
        reach: in windowed layers, the largest distance to a token that it attends to; None: no windows.
        by_layer_type: the model takes a mask for each type of layer, and some layers have no window.
    """

    is_causal: bool = False
    reach: int | None = None
    by_layer_type: bool = False


class PackedModel(nn.Module):
    """The model with attention kept within each text of a row."""

    def __init__(self, model: PreTrainedModel, form: AttentionForm = AttentionForm()) -> None:
        super().__init__()
        self.model = model
        self._form = form
        parameters = inspect.signature(model.forward).parameters
        self._reads_type_ids = "token_type_ids" in parameters
        self._extra = {"use_cache": False} if "use_cache" in parameters else {}

    def forward(self, input_ids: Tensor, position_ids: Tensor, type_ids: Tensor, segments: Tensor) -> Tensor:
        """Four of (rows, width) -> (rows, width, hidden)."""
        output = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=self._mask(position_ids, segments),
            **({"token_type_ids": type_ids} if self._reads_type_ids else {}),
            **self._extra,
        )
        states: Tensor = output.last_hidden_state
        return states

    def _mask(self, positions: Tensor, segments: Tensor) -> Tensor | dict[str, Tensor]:
        """(rows, 1, width, width): 0 where a token attends; or one such mask for each type of layer."""
        allowed = segments.unsqueeze(1) == segments.unsqueeze(2)  # (rows, queries, keys)
        if self._form == AttentionForm():
            return self._added(allowed)
        distances = positions.unsqueeze(2) - positions.unsqueeze(1)  # from key to query
        if self._form.is_causal:
            allowed = allowed & (distances >= 0)
        if self._form.reach is None:
            return self._added(allowed)
        windowed = self._added(allowed & (distances.abs() <= self._form.reach))
        if not self._form.by_layer_type:
            return windowed
        return {_FULL: self._added(allowed), _SLIDING: windowed}

    def _added(self, allowed: Tensor) -> Tensor:
        mask = torch.where(allowed, 0.0, _MASKED).unsqueeze(1)  # (rows, 1, width, width)
        return mask.to(self.model.dtype)


def arrays(rows: PackedRows, position_offset: int) -> tuple[NDArray[np.int64], ...]:
    """The arguments of `PackedModel.forward`."""
    return rows.input_ids, rows.position_ids + position_offset, rows.type_ids, rows.segments


def position_limit(model: nn.Module) -> int | None:
    """Tokens for which the model has learned positions; None if it has no such table."""
    limits = []
    for module in model.modules():
        for name in _POSITION_TABLES:
            table = getattr(module, name, None)
            if isinstance(table, nn.Embedding):
                # Those of RoBERTa begin behind the padding's.
                padding = getattr(module, "padding_idx", None)
                limits.append(table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0))
    return min(limits, default=None)


def attention_window(model: PreTrainedModel) -> int | None:
    """The window of the model's config, in tokens; None if no layer has one."""
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    # Qwen's configs name a window that no layer uses.
    is_used = types is None or any(one in types for one in _WINDOWED)
    return window if window and is_used else None


class PackingCheck:
    """Random texts in one row, and the model's states of each text alone, in float32.

    The longest text is longer than the attention windows, and has all the positions of a model that reads
    512 tokens or fewer.

    Args:
        model: in float32 on the CPU.
        max_tokens: tokens of the longest text that will be computed.

    Raises:
        NotPackable: packed texts do not get the states that they have alone.
    """

    def __init__(self, model: PreTrainedModel, max_tokens: int = _LONG_CHECK) -> None:
        max_tokens = min(max_tokens, position_limit(model) or max_tokens)
        window = attention_window(model)
        self._window = window if window and window < max_tokens else None
        wanted = max(_LONG_CHECK, (self._window or 0) + (self._window or 0) // 2 + 8)
        try:
            self.rows = _check_rows(model, [*_CHECK_LENGTHS, min(max_tokens, wanted)])
            self._expected = _states_alone(model, self.rows)
            # Where positions start: at 0, or after the padding index as in RoBERTa. Found by trying both.
            self.form, self.position_offset = self._find_form(model)
        except _MODEL_ERRORS as error:
            raise NotPackable(f"it does not run on random texts: {error!r}") from error

    def verify(self, states: States, dtype: str) -> None:
        """Compare an engine's states of `rows` with torch's in float32.

        Raises:
            NotPackable: they differ by more than the precision explains.
        """
        actual = _of_texts(states, self.rows)
        lengths = np.linalg.norm(self._expected, axis=1) * np.linalg.norm(actual, axis=1)
        cosines = (self._expected * actual).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        # Rounding may change single states of random texts more.
        typical = np.quantile(cosines, _TYPICAL)
        if not typical >= (_MIN_COSINE_FLOAT32 if dtype == "float32" else _MIN_COSINE):
            raise NotPackable(f"its states differ from torch's in float32 (cosine {typical:.4f})")

    @torch.inference_mode()
    def _find_form(self, model: PreTrainedModel) -> tuple[AttentionForm, int]:
        reason = "texts packed into one row change each other's states"
        for form in self._forms(model):
            packed = PackedModel(model, form)
            for offset in dict.fromkeys((0, (model.config.pad_token_id or 0) + 1)):
                try:
                    states = packed(*map(torch.from_numpy, arrays(self.rows, offset)))
                except _MODEL_ERRORS as error:
                    reason = f"it does not accept packed texts: {error!r}"
                    continue
                errors = np.linalg.norm(_of_texts(states.numpy(), self.rows) - self._expected, axis=1)
                if (errors < _TOLERANCE * np.linalg.norm(self._expected, axis=1)).all():
                    return form, offset
        raise NotPackable(reason)

    def _forms(self, model: PreTrainedModel) -> list[AttentionForm]:
        """All forms that the model may have: windows count their own token or not."""
        is_causal = _is_causal(model, self.rows)
        if self._window is None:
            return [AttentionForm(is_causal)]
        by_layer_type = getattr(model.config, "layer_types", None) is not None
        return [AttentionForm(is_causal, reach, by_layer_type) for reach in (self._window, self._window - 1)]


def _is_causal(model: PreTrainedModel, rows: PackedRows) -> bool:
    """Whether the first tokens of a text keep their states without the tokens that follow."""
    ids = rows.input_ids.reshape(-1)[rows.starts[1] : rows.starts[1] + rows.lengths[1]]
    whole, part = (_states_of(model, ids[:length]) for length in (len(ids), len(ids) // 2))
    return bool(np.allclose(whole[: len(part)], part, rtol=1e-3, atol=1e-3))


def _check_rows(model: PreTrainedModel, token_counts: Sequence[int]) -> PackedRows:
    """Random texts in one row, with ids from the whole vocabulary."""
    table: Any = model.get_input_embeddings()
    vocabulary = int(table.weight.shape[0])
    generator = np.random.default_rng(0)
    pad_id = model.config.pad_token_id or 0
    texts = []
    for length in token_counts:
        ids = generator.integers(0, vocabulary, length)
        ids[ids == pad_id] = vocabulary - 1
        texts.append(TokenizedText(ids.tolist(), None, truncated=False, is_query=False))
    counts = np.array(token_counts, dtype=np.int64)
    width = _width(int(counts.sum()))
    rows = _fill(texts, np.arange(len(texts)), _first_fit(counts, width), width, pad_id)
    # The content of the padding must not matter.
    return replace(rows, input_ids=np.where(rows.segments == 0, 1, rows.input_ids))


def _states_alone(model: PreTrainedModel, rows: PackedRows) -> States:
    """(tokens, hidden): the states of each text alone, without packing."""
    flat = rows.input_ids.reshape(-1)
    spans = zip(rows.starts, rows.lengths, strict=True)
    return np.concatenate([_states_of(model, flat[start : start + length]) for start, length in spans])


@torch.inference_mode()
def _states_of(model: PreTrainedModel, ids: Ids) -> States:
    input_ids = torch.from_numpy(ids).unsqueeze(0)  # (1, length)
    output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    states: States = output.last_hidden_state[0].float().numpy()
    return states


def _of_texts(states: States, rows: PackedRows) -> States:
    """(rows, width, hidden) -> (tokens, hidden) without padding, text after text."""
    flat = states.reshape(-1, states.shape[-1])
    spans = zip(rows.starts, rows.lengths, strict=True)
    return np.concatenate([flat[start : start + length] for start, length in spans])
