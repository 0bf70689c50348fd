"""Inference on packed rows: the torch engine, and the pooling and heads that read a transformer's states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from textmatch.models.engines import TORCH, Engine, EngineConfig
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.packing import PackedModel, PackedRows, PackingCheck, arrays, pack


class TorchEngine:
    """The transformer in eager torch, on CPUs and GPUs; `run` is called from one thread at a time."""

    name = TORCH

    def __init__(self, model: PreTrainedModel, config: EngineConfig, position_offset: int) -> None:
        self._device = torch.device(config.device)
        self._model = PackedModel(model)
        self._model.to(device=self._device, dtype=getattr(torch, config.dtype))
        self._position_offset = position_offset

    @classmethod
    def load(cls, model: PreTrainedModel, config: EngineConfig, model_id: str) -> TorchEngine:
        """Bring a copy of the model into its precision and onto its device.

        Raises:
            NotPackable: the model cannot run on packed rows.
        """
        check = PackingCheck(model)
        engine = cls(copy.deepcopy(model), config, check.position_offset)
        check.verify(engine.run(check.rows).float().cpu().numpy())
        return engine

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden) in the engine's precision on its device."""
        inputs = [torch.from_numpy(array) for array in arrays(rows, self._position_offset)]
        if self._device.type == "cuda":
            inputs = [array.pin_memory().to(self._device, non_blocking=True) for array in inputs]
        with torch.inference_mode():
            states: Tensor = self._model(*inputs)
        return states


class PackedBiEncoder:
    """A transformer run by an engine, and the sentence-transformers modules that follow it."""

    def __init__(self, engine: Engine, modules: Sequence[nn.Module], pad_id: int) -> None:
        self.engine_name = engine.name
        self._engine = engine
        self._modules = modules
        self._pad_id = pad_id
        first = modules[0] if modules else None
        # "mean" and "cls" need no padded copy of the states.
        self._pooling = first.pooling_mode if isinstance(first, Pooling) else None

    @property
    def plain_pooling(self) -> str | None:
        """ "mean" or "cls", if nothing else follows that changes an embedding's direction."""
        is_plain = all(isinstance(module, Normalize) for module in self._modules[1:])
        return self._pooling if is_plain and self._pooling in ("mean", "cls") else None

    @torch.inference_mode()
    def embed(self, batch: Sequence[TokenizedText], prompt_tokens: int) -> Tensor:
        """One forward pass: (count, dimension), in the order of the batch."""
        parts = [
            (rows, self._embed_rows(rows, self._engine.run(rows), prompt_tokens))
            for rows in pack(batch, self._pad_id)
        ]
        embeddings = parts[0][1].new_empty((len(batch), parts[0][1].shape[1]))
        for rows, embedded in parts:
            embeddings[torch.from_numpy(rows.texts)] = embedded
        return embeddings

    def _embed_rows(self, rows: PackedRows, states: Tensor, prompt_tokens: int) -> Tensor:
        if self._pooling == "mean" and not prompt_tokens:
            features: dict[str, Any] = {"sentence_embedding": mean_states(rows, states)}
            following = self._modules[1:]
        elif self._pooling == "cls":
            features = {"sentence_embedding": first_states(rows, states).float()}
            following = self._modules[1:]
        else:
            features = padded_features(rows, states)
            if prompt_tokens:
                features["prompt_length"] = prompt_tokens
            following = self._modules
        for module in following:
            features = module(features)
        embedded: Tensor = features["sentence_embedding"]
        return embedded


class PrecomputedStates(nn.Module):
    """Replaces the transformer of a sequence-classification model, and returns an engine's states.

    The heads of such models read only the first token.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.pooler = getattr(transformer, "pooler", None)
        # ALBERT's pooler is a bare layer; others select the first token and apply the activation.
        self.pooler_activation = getattr(transformer, "pooler_activation", None)
        self.states = torch.empty(0)

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        """Return the first tokens' states, (count, 1, hidden), and the output of the model's pooler."""
        return BaseModelOutputWithPooling(last_hidden_state=self.states, pooler_output=self._pooled())

    def _pooled(self) -> Tensor | None:
        if self.pooler is None:
            return None
        if self.pooler_activation is None:
            pooled: Tensor = self.pooler(self.states)  # (count, hidden)
        else:
            pooled = self.pooler_activation(self.pooler(self.states[:, 0]))
        return pooled


class PackedCrossEncoder:
    """A sequence-classification model with its transformer in an engine and its head in torch."""

    def __init__(self, engine: Engine, model: PreTrainedModel, pad_id: int) -> None:
        self.engine_name = engine.name
        self._engine = engine
        self._pad_id = pad_id
        self._transformer = PrecomputedStates(getattr(model, model.base_model_prefix))
        setattr(model, model.base_model_prefix, self._transformer)

    def features(self, batch: Sequence[TokenizedText]) -> dict[str, Tensor]:
        """One forward pass. The model, called with the result, scores the batch in its order."""
        packed = pack(batch, self._pad_id)
        parts = [(rows, first_states(rows, self._engine.run(rows)).float()) for rows in packed]
        states = parts[0][1].new_empty((len(batch), 1, parts[0][1].shape[1]))  # (count, 1, hidden)
        for rows, first in parts:
            states[torch.from_numpy(rows.texts), 0] = first
        self._transformer.states = states
        one_token_each = torch.ones((len(batch), 1), dtype=torch.int64)
        return {"input_ids": one_token_each, "attention_mask": one_token_each}


def first_states(rows: PackedRows, states: Tensor) -> Tensor:
    """(count, hidden): a copy of the state of each text's first token."""
    flat = states.reshape(-1, states.shape[-1])  # (rows * width, hidden)
    return flat[torch.from_numpy(rows.starts).to(flat.device)]


def mean_states(rows: PackedRows, states: Tensor) -> Tensor:
    """(count, hidden) float32: the mean over the tokens of each text."""
    flat = states.reshape(-1, states.shape[-1]).float()  # (rows * width, hidden)
    owners = torch.from_numpy(rows.owners).to(flat.device)  # (rows * width,)
    sums = flat.new_zeros((len(rows.lengths) + 1, flat.shape[1])).index_add_(0, owners, flat)
    lengths = torch.from_numpy(rows.lengths).to(flat.device).unsqueeze(1)  # (count, 1)
    return sums[:-1] / lengths


def padded_features(rows: PackedRows, states: Tensor) -> dict[str, Any]:
    """The output of a sentence-transformers Transformer module for these texts, padded to the longest."""
    flat = states.reshape(-1, states.shape[-1]).float()
    lengths = torch.from_numpy(rows.lengths)  # (count,)
    columns = torch.arange(int(lengths.max()))  # (longest,)
    mask = columns < lengths.unsqueeze(1)  # (count, longest)
    places = torch.from_numpy(rows.starts).unsqueeze(1) + columns * mask  # (count, longest)
    device = flat.device
    token_embeddings = flat[places.to(device)] * mask.to(device).unsqueeze(2)  # (count, longest, hidden)
    return {"token_embeddings": token_embeddings, "attention_mask": mask.to(device, torch.int64)}
