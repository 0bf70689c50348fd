"""The native engine: runs a transformer in the C++ kernel, without padding.

It runs encoders with layers like BERT's (BERT, ELECTRA, RoBERTa, XLM-R, DistilBERT, ALBERT) in bfloat16,
with sums, states and norms in float32. Threads synchronise only at the end of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from textmatch.models.engines import NATIVE, EngineConfig
from textmatch.models.native.kernel import LAYER_MODULES, Kernel, KernelShape, weights_path, write_cache
from textmatch.models.packing import AttentionForm, NotPackable, PackedRows, PackingCheck

_ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}
_TABLES = {"words": "word", "positions": "position", "types": "token_type"}


@dataclass(frozen=True)
class _Naming:
    """The names of a model family's parts; `layer` is in the order of LAYER_MODULES."""

    layers: str
    layer: tuple[str, ...]
    projection: str = ""
    activation: str = "hidden_act"
    inner: str = "intermediate_size"


_BERT = _Naming(
    layers="encoder.layer.{}.",
    layer=(
        *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        *("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    ),
)
_DISTILBERT = _Naming(
    layers="transformer.layer.{}.",
    layer=(
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm"),
        *("ffn.lin1", "ffn.lin2", "output_layer_norm"),
    ),
    activation="activation",
    inner="hidden_dim",
)
_ALBERT = _Naming(
    layers="encoder.albert_layer_groups.0.albert_layers.{}.",
    layer=(
        *("attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm"),
        *("ffn", "ffn_output", "full_layer_layer_norm"),
    ),
    projection="encoder.embedding_hidden_mapping_in",
)
_NAMINGS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
}


class NativeEngine:
    """A transformer in the kernel; `run` is called from one thread at a time."""

    name = NATIVE

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._states = np.zeros((0, kernel.shape.hidden), dtype=np.float32)

    @classmethod
    def load(
        cls, model: PreTrainedModel, check: PackingCheck, config: EngineConfig, model_id: str
    ) -> NativeEngine:
        """Make a kernel of the weights, and write them into the cache for a start without torch.

        Raises:
            NotPackable: the kernel cannot run such a model.
            KernelMissing: the kernel is not compiled or cannot run here.
        """
        if check.form != AttentionForm():
            raise NotPackable("the kernel has neither causal attention nor attention windows")
        weights = _Weights(model)
        shape, arrays = weights.shape(check.position_offset), weights.arrays()
        engine = cls(Kernel(shape, arrays, config.threads))
        check.verify(engine.run(check.rows).numpy(), "bfloat16")
        write_cache(weights_path(config.cache_directory, model_id), asdict(shape), arrays)
        return engine

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden) float32; valid until the next call.

        Raises:
            IndexError: the model has no embedding for an id or a position.
        """
        row_count, width = rows.input_ids.shape
        if len(self._states) < row_count * width:
            self._states = np.zeros((row_count * width, self.kernel.shape.hidden), dtype=np.float32)
        states = self._states[: row_count * width]
        self.kernel.run(rows.input_ids, rows.type_ids, rows.starts, rows.lengths, states)
        return torch.from_numpy(states).view(row_count, width, -1)


class _Weights:
    """A model's weights in the form that the kernel reads."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._config: Any = model.config
        naming = _NAMINGS.get(self._config.model_type)
        if naming is None:
            raise NotPackable(f'the kernel does not support models of type "{self._config.model_type}"')
        self._naming = naming
        self._states: Mapping[str, Tensor] = model.state_dict()

    def shape(self, first_position: int) -> KernelShape:
        """The sizes.

        Raises:
            NotPackable: the kernel cannot run such a model.
        """
        config, naming = self._config, self._naming
        activation = getattr(config, naming.activation)
        if activation not in _ACTIVATIONS:
            raise NotPackable(f'the kernel does not support the activation "{activation}"')
        if getattr(config, "num_hidden_groups", 1) != 1 or getattr(config, "inner_group_num", 1) != 1:
            raise NotPackable("the kernel supports only one group of shared layers")
        embedding = self._states["embeddings.word_embeddings.weight"].shape[1]
        if embedding != config.hidden_size and not naming.projection:
            raise NotPackable("its embeddings are narrower than its layers")
        return KernelShape(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            inner=getattr(config, naming.inner),
            layers=config.num_hidden_layers,
            embedding=embedding,
            activation=_ACTIVATIONS[activation],
            norm_epsilon=getattr(config, "layer_norm_eps", 1e-12),
            first_position=first_position,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The weights under the names that `Kernel` uses.

        Raises:
            NotPackable: some are missing or beyond the range of float16.
        """
        arrays = dict(self._tables()) | dict(self._module("norm", "embeddings.LayerNorm"))
        if self._naming.projection:
            arrays |= self._module("projection", self._naming.projection)
        for number, prefix in enumerate(self._layer_prefixes()):
            for ours, theirs in zip(LAYER_MODULES, self._naming.layer, strict=True):
                arrays |= self._module(f"layers.{number}.{ours}", prefix + theirs)
        return arrays

    def _layer_prefixes(self) -> Iterator[str]:
        """One for each layer with weights of its own."""
        for number in range(self._config.num_hidden_layers):
            prefix = self._naming.layers.format(number)
            if any(name.startswith(prefix) for name in self._states):
                yield prefix

    def _module(self, ours: str, theirs: str) -> dict[str, NDArray[np.float32]]:
        return {ours: self._array(f"{theirs}.weight"), f"{ours}_bias": self._array(f"{theirs}.bias")}

    def _array(self, name: str) -> NDArray[np.float32]:
        if name not in self._states:
            raise NotPackable(f'the model has no weights "{name}"')
        array: NDArray[np.float32] = np.ascontiguousarray(self._states[name].float().numpy())
        return array

    def _tables(self) -> Iterator[tuple[str, NDArray[np.float16]]]:
        for ours, theirs in _TABLES.items():
            name = f"embeddings.{theirs}_embeddings.weight"
            # Only types are optional: a model with another form of positions fails the check.
            if ours == "types" and name not in self._states:
                continue
            table = np.ascontiguousarray(self._array(name).astype(np.float16))
            if not np.isfinite(table).all():
                raise NotPackable(f'values of "{name}" are beyond the range of float16')
            yield ours, table
