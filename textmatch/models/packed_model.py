"""A transformer that reads packed rows: what every engine runs, and whether a model can be run so.

Works for encoders whose attention mask may be given as a whole matrix (BERT, RoBERTa, XLM-R, DistilBERT,
ALBERT, MPNet, ELECTRA). Whether a model is one of them is not looked up but tried: the packed states must
equal those of each text alone.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from textmatch.models.packing import PackedRows, pack
from textmatch.models.tokens import TokenizedText

States = NDArray[np.float32]

# Far below every score, and still within bfloat16.
_MASKED = -1e9
# A wrong position or mask is off by far more.
_TOLERANCE = 1e-3
# Cosine of the states of a token in the engine's precision and in float32.
_MIN_COSINE = 0.99
_PROBE_LENGTHS = (7, 23, 12)


class NotPackable(Exception):
    """The model cannot be run on packed rows; the message says why."""


class PackedModel(nn.Module):
    """The model with attention kept within each text of a row."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._reads_type_ids = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, position_ids: Tensor, type_ids: Tensor, segments: Tensor) -> Tensor:
        """Four of (rows, width) -> (rows, width, hidden)."""
        same_text = segments.unsqueeze(1) == segments.unsqueeze(2)  # (rows, width, width)
        mask = torch.where(same_text, 0.0, _MASKED).unsqueeze(1)  # (rows, 1, width, width)
        mask = mask.to(self.model.dtype)
        extra = {"token_type_ids": type_ids} if self._reads_type_ids else {}
        output = self.model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, **extra)
        states: Tensor = output.last_hidden_state
        return states


def arrays(rows: PackedRows, position_offset: int) -> tuple[NDArray[np.int64], ...]:
    """What `PackedModel.forward` reads, in its order."""
    return rows.input_ids, rows.position_ids + position_offset, rows.type_ids, rows.segments


class Probe:
    """Three made-up texts in one row, and what the model makes of each by itself, in float32.

    Args:
        model: in float32 on the CPU.

    Raises:
        NotPackable: texts packed into one row do not get the states that they have alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows = _probe_rows(model)
        self._expected = _states_alone(model, self.rows)
        # Where positions start: 0, or behind the padding index as in RoBERTa. Found by trying.
        self.position_offset = self._find_position_offset(model)

    def check(self, states: States) -> None:
        """Compare what an engine made of the rows with what torch makes of them in float32.

        Raises:
            NotPackable: they differ by more than precision explains.
        """
        actual = _of_texts(states, self.rows)
        lengths = np.linalg.norm(self._expected, axis=1) * np.linalg.norm(actual, axis=1)
        cosines = (self._expected * actual).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        if not cosines.min() >= _MIN_COSINE:
            raise NotPackable(f"its states differ from torch's in float32 (cosine {cosines.min():.4f})")

    @torch.inference_mode()
    def _find_position_offset(self, model: PreTrainedModel) -> int:
        packed = PackedModel(model)
        for offset in (0, (model.config.pad_token_id or 0) + 1):
            try:
                states = packed(*map(torch.from_numpy, arrays(self.rows, offset)))
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
                raise NotPackable(f"it takes no packed texts: {error}") from error
            if np.abs(_of_texts(states.numpy(), self.rows) - self._expected).max() < _TOLERANCE:
                return offset
        raise NotPackable("texts packed into one row change one another")


def _probe_rows(model: PreTrainedModel) -> PackedRows:
    """Three made-up texts in one row, with ids from all over the vocabulary."""
    config: Any = model.config
    generator = np.random.default_rng(0)
    pad_id = config.pad_token_id or 0
    texts = []
    for length in _PROBE_LENGTHS:
        ids = generator.integers(0, config.vocab_size, length)
        ids[ids == pad_id] = config.vocab_size - 1
        texts.append(TokenizedText(ids.tolist(), None, truncated=False, is_query=False))
    [rows] = pack(texts, pad_id)
    # The padding of a row must not matter, whatever stands there.
    return replace(rows, input_ids=np.where(rows.segments == 0, 1, rows.input_ids))


@torch.inference_mode()
def _states_alone(model: PreTrainedModel, rows: PackedRows) -> States:
    """(tokens, hidden): the states of each text by itself, as the model is usually run."""
    flat = rows.input_ids.reshape(-1)
    parts = []
    for start, length in zip(rows.starts, rows.lengths, strict=True):
        input_ids = torch.from_numpy(flat[start : start + length]).unsqueeze(0)  # (1, length)
        output = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        parts.append(output.last_hidden_state[0].float().numpy())
    return np.concatenate(parts)


def _of_texts(states: States, rows: PackedRows) -> States:
    """(rows, width, hidden) -> (tokens, hidden) without padding, text after text."""
    flat = states.reshape(-1, states.shape[-1])
    spans = zip(rows.starts, rows.lengths, strict=True)
    return np.concatenate([flat[start : start + length] for start, length in spans])
