"""Inference on packed rows: the torch engine, and the pooling and heads that read a transformer's states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from textmatch.models.engines import TORCH, Engine, EngineConfig
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.packing import PackedModel, PackedRows, PackingCheck, arrays, pack


class TorchEngine:
    """The transformer in eager torch, on CPUs and GPUs; `run` is called from one thread at a time."""

    name = TORCH

    def __init__(self, model: PreTrainedModel, check: PackingCheck, config: EngineConfig) -> None:
        self._device = torch.device(config.device)
        self._model = PackedModel(model, check.form)
        self._model.to(device=self._device, dtype=getattr(torch, config.dtype))
        self._position_offset = check.position_offset

    @classmethod
    def load(
        cls, model: PreTrainedModel, check: PackingCheck, config: EngineConfig, model_id: str
    ) -> TorchEngine:
        """Bring a copy of the model into its precision and onto its device.

        Raises:
            NotPackable: the model cannot run on packed rows in this precision.
        """
        engine = cls(copy.deepcopy(model), check, config)
        check.verify(engine.run(check.rows).float().cpu().numpy(), config.dtype)
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
    """A transformer run by an engine, and the sentence-transformers modules that follow it.

    `output` is the feature that the last module writes.
    """

    def __init__(
        self, engine: Engine, modules: Sequence[nn.Module], pad_id: int, output: str = "sentence_embedding"
    ) -> None:
        self.engine_name = engine.name
        self._engine = engine
        self._modules = modules
        self._pad_id = pad_id
        self._output = output
        first = modules[0] if modules else None
        # "mean", "cls" and "lasttoken" need no padded copy of the states.
        self._pooling = first.pooling_mode if isinstance(first, Pooling) else None

    @property
    def plain_pooling(self) -> str | None:
        """ "mean" or "cls", if nothing else follows but a normalization."""
        is_plain = all(isinstance(module, Normalize) for module in self._modules[1:])
        return self._pooling if is_plain and self._pooling in ("mean", "cls") else None

    @property
    def normalizes(self) -> bool:
        """Whether the last module gives embeddings length 1."""
        return bool(self._modules) and isinstance(self._modules[-1], Normalize)

    @torch.inference_mode()
    def embed(self, batch: Sequence[TokenizedText], prompt_tokens: int = 0) -> Tensor:
        """One forward pass: (count, dimension), in the order of the batch.

        Pooling ignores the first `prompt_tokens` of each text.
        """
        parts = [
            (rows, self._embed_rows(rows, self._engine.run(rows), prompt_tokens))
            for rows in pack(batch, self._pad_id)
        ]
        embeddings = parts[0][1].new_empty((len(batch), parts[0][1].shape[1]))
        for rows, embedded in parts:
            embeddings[torch.from_numpy(rows.texts)] = embedded
        return embeddings

    def _embed_rows(self, rows: PackedRows, states: Tensor, prompt_tokens: int) -> Tensor:
        following = self._modules[1:]
        features: dict[str, Any]
        if self._pooling == "mean" and not prompt_tokens:
            features = {"sentence_embedding": mean_states(rows, states)}
        elif self._pooling == "cls" and not prompt_tokens:
            features = {"sentence_embedding": first_states(rows, states).float()}
        elif self._pooling == "lasttoken" and not prompt_tokens:
            features = {"sentence_embedding": last_states(rows, states).float()}
        else:
            features = padded_features(rows, states)
            if prompt_tokens:
                features["prompt_length"] = prompt_tokens
            following = self._modules
        for module in following:
            features = module(features)
        embedded: Tensor = features[self._output]
        return embedded


class PrecomputedStates(nn.Module):
    """Replaces the transformer of a model with a head, and returns an engine's states."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.pooler = getattr(transformer, "pooler", None)
        # ALBERT's pooler is a bare layer; others select the first token and apply the activation.
        self.pooler_activation = getattr(transformer, "pooler_activation", None)
        self.states = torch.empty(0)

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Return the states, (count, tokens, hidden), and the output of the model's pooler."""
        # Heads of decoders also read `past_key_values`, which is None here.
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=self.states, pooler_output=self._pooled()
        )

    def _pooled(self) -> Tensor | None:
        if self.pooler is None:
            return None
        if self.pooler_activation is None:
            pooled: Tensor = self.pooler(self.states)  # (count, hidden)
        else:
            pooled = self.pooler_activation(self.pooler(self.states[:, 0]))
        return pooled


# The tokens whose states a head reads.
FIRST_TOKEN, LAST_TOKEN, ALL_TOKENS = "first token", "last token", "all tokens"


class PackedCrossEncoder:
    """A model with a scoring head: its transformer runs in an engine, its head in torch.

    `reads` are the tokens whose states the head reads. With one token each, the head needs no padding.
    """

    def __init__(self, engine: Engine, model: PreTrainedModel, pad_id: int) -> None:
        self.engine_name = engine.name
        self.reads = FIRST_TOKEN
        self._engine = engine
        self._pad_id = pad_id
        self._transformer = PrecomputedStates(getattr(model, model.base_model_prefix))
        setattr(model, model.base_model_prefix, self._transformer)

    def features(self, batch: Sequence[TokenizedText]) -> dict[str, Tensor]:
        """One forward pass. The model, called with the result, scores the batch in its order."""
        packed = pack(batch, self._pad_id)
        if self.reads == ALL_TOKENS:
            return self._all_tokens(batch, packed)
        state_of_text = first_states if self.reads == FIRST_TOKEN else last_states
        parts = [(rows, state_of_text(rows, self._engine.run(rows)).float()) for rows in packed]
        states = parts[0][1].new_empty((len(batch), 1, parts[0][1].shape[1]))  # (count, 1, hidden)
        for rows, selected in parts:
            states[torch.from_numpy(rows.texts), 0] = selected
        self._transformer.states = states
        one_token_each = torch.ones((len(batch), 1), dtype=torch.int64)
        return {"input_ids": one_token_each, "attention_mask": one_token_each}

    def _all_tokens(self, batch: Sequence[TokenizedText], packed: Sequence[PackedRows]) -> dict[str, Tensor]:
        """Padded on the right to the longest text, which heads find the ends of texts by."""
        shape = (len(batch), max(text.token_count for text in batch))
        input_ids = torch.full(shape, self._pad_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        for row, text in enumerate(batch):
            input_ids[row, : text.token_count] = torch.tensor(text.ids)
            mask[row, : text.token_count] = 1
        parts = [(rows, padded_features(rows, self._engine.run(rows))["token_embeddings"]) for rows in packed]
        states = parts[0][1].new_zeros((*shape, parts[0][1].shape[2]))  # (count, longest, hidden)
        for rows, padded in parts:
            states[torch.from_numpy(rows.texts), : padded.shape[1]] = padded
        self._transformer.states = states
        return {"input_ids": input_ids, "attention_mask": mask}


def first_states(rows: PackedRows, states: Tensor) -> Tensor:
    """(count, hidden): a copy of the state of each text's first token."""
    flat = states.reshape(-1, states.shape[-1])  # (rows * width, hidden)
    return flat[torch.from_numpy(rows.starts).to(flat.device)]


def last_states(rows: PackedRows, states: Tensor) -> Tensor:
    """(count, hidden): a copy of the state of each text's last token."""
    flat = states.reshape(-1, states.shape[-1])  # (rows * width, hidden)
    return flat[torch.from_numpy(rows.starts + rows.lengths - 1).to(flat.device)]


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
