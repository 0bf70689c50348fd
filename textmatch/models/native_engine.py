"""A kernel of our own for CPUs with AMX: no padding is computed, and threads meet only at the end of a batch.

Runs encoders whose layers are built like BERT's (BERT, ELECTRA, RoBERTa, XLM-R, DistilBERT, ALBERT) in
bfloat16, with sums, states and norms in float32. The kernel is the C++ in `native/`; it is compiled when
textmatch is installed where there is a compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from textmatch.models.engines import Placement
from textmatch.models.packed_model import NotPackable, Probe
from textmatch.models.packing import PackedRows

LIBRARY = Path(__file__).parent / "native" / "libtransformer.so"

_ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}
_POINTER = ctypes.c_void_p


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "heads", "inner", "layers", "embedding")),
        ("activation", ctypes.c_int32),
        ("norm_epsilon", ctypes.c_float),
    )


class _Embedding(ctypes.Structure):
    _fields_ = tuple(
        (name, _POINTER)
        for name in ("words", "positions", "types", "norm", "norm_bias", "projection", "projection_bias")
    )


_LAYER_MODULES = ("query", "key", "value", "output", "attention_norm", "up", "down", "norm")


class _Layer(ctypes.Structure):
    _fields_ = tuple((name + part, _POINTER) for name in _LAYER_MODULES for part in ("", "_bias"))


@dataclass(frozen=True)
class _Naming:
    """What a family of models calls its parts; `layer` is in the order of _LAYER_MODULES."""

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

    name = "native"

    def __init__(self, model: PreTrainedModel, threads: int, position_offset: int) -> None:
        self._library = _library()
        self._position_offset = position_offset
        self._hidden: int = model.config.hidden_size
        weights = _Weights(model)
        # The kernel reads the tables of embeddings where they are; all else it copies.
        self._tables = weights.tables
        layers = weights.layers()
        self._transformer = _POINTER(
            self._library.textmatch_create(
                ctypes.byref(weights.shape()),
                ctypes.byref(weights.embedding()),
                (_Layer * len(layers))(*layers),
                ctypes.c_int64(len(layers)),
                ctypes.c_int64(threads),
            )
        )
        self._states = np.zeros((0, self._hidden), dtype=np.float32)

    def __del__(self) -> None:
        if hasattr(self, "_transformer"):
            self._library.textmatch_destroy(self._transformer)

    @classmethod
    def load(cls, model: PreTrainedModel, placement: Placement) -> NativeEngine:
        """Copy the weights into the order in which the processor's tiles read them.

        Raises:
            ImportError: the kernel was not compiled.
            NotPackable: the model is of another kind than the kernel runs, or the processor is.
        """
        if placement.device != "cpu" or placement.dtype != torch.bfloat16:
            raise NotPackable(
                f"the kernel computes in bfloat16 on a CPU, not {placement.dtype} on {placement.device}"
            )
        if not _library().textmatch_is_usable():
            raise NotPackable("this processor or this system has no AMX")
        probe = Probe(model)
        engine = cls(model, placement.threads, probe.position_offset)
        probe.check(engine.run(probe.rows).numpy())
        return engine

    def run(self, rows: PackedRows) -> Tensor:
        """(rows, width) -> (rows, width, hidden) float32; valid until the next call.

        Raises:
            IndexError: the model has no embedding for an id, or for so late a position.
        """
        self._check(rows)
        row_count, width = rows.input_ids.shape
        if len(self._states) < row_count * width:
            self._states = np.zeros((row_count * width, self._hidden), dtype=np.float32)
        states = self._states[: row_count * width]
        self._library.textmatch_run(
            self._transformer,
            _pointer(rows.input_ids),
            _pointer(rows.type_ids),
            _pointer(rows.starts),
            _pointer(rows.lengths),
            ctypes.c_int64(len(rows.lengths)),
            ctypes.c_int64(self._position_offset),
            _pointer(states),
        )
        return torch.from_numpy(states).view(row_count, width, self._hidden)

    def _check(self, rows: PackedRows) -> None:
        """The kernel trusts what it is given, and would read behind its tables.

        Raises:
            IndexError: an id is beyond the model's vocabulary, or a text longer than the model reads.
        """
        ends = (rows.input_ids.max(), self._position_offset + rows.lengths.max() - 1, rows.type_ids.max())
        for table, end in zip(self._tables, ends, strict=True):
            if table is not None and end >= len(table):
                raise IndexError(f"the model's table has {len(table)} entries, and {end} was asked for")


class _Weights:
    """A model's weights as the kernel wants them: contiguous float32 arrays, and tables in float16."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._config: Any = model.config
        naming = _NAMINGS.get(self._config.model_type)
        if naming is None:
            raise NotPackable(f'the kernel runs no models of the type "{self._config.model_type}"')
        self._naming = naming
        self._states: Mapping[str, Tensor] = model.state_dict()
        self._kept: list[NDArray[Any]] = []
        self.tables = [self._table(name) for name in ("word", "position", "token_type")]

    def shape(self) -> _Shape:
        config, naming = self._config, self._naming
        activation = getattr(config, naming.activation)
        if activation not in _ACTIVATIONS:
            raise NotPackable(f'the kernel knows no activation "{activation}"')
        if getattr(config, "num_hidden_groups", 1) != 1 or getattr(config, "inner_group_num", 1) != 1:
            raise NotPackable("the kernel runs only one group of shared layers")
        embedding = self._states["embeddings.word_embeddings.weight"].shape[1]
        if embedding != config.hidden_size and not naming.projection:
            raise NotPackable("its embeddings are narrower than its layers")
        return _Shape(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            inner=getattr(config, naming.inner),
            layers=config.num_hidden_layers,
            embedding=embedding,
            activation=_ACTIVATIONS[activation],
            norm_epsilon=getattr(config, "layer_norm_eps", 1e-12),
        )

    def embedding(self) -> _Embedding:
        words, positions, types = (_pointer(table) for table in self.tables)
        projection = self._module(self._naming.projection) if self._naming.projection else (None, None)
        return _Embedding(words, positions, types, *self._module("embeddings.LayerNorm"), *projection)

    def layers(self) -> list[_Layer]:
        """As many as differ."""
        return [_Layer(*self._layer(prefix)) for prefix in self._layer_prefixes()]

    def _layer_prefixes(self) -> Iterator[str]:
        for number in range(self._config.num_hidden_layers):
            prefix = self._naming.layers.format(number)
            if not any(name.startswith(prefix) for name in self._states):
                return
            yield prefix

    def _layer(self, prefix: str) -> Iterator[_POINTER]:
        for name in self._naming.layer:
            yield from self._module(prefix + name)

    def _module(self, name: str) -> tuple[_POINTER, _POINTER]:
        return self._array(f"{name}.weight"), self._array(f"{name}.bias")

    def _array(self, name: str) -> _POINTER:
        if name not in self._states:
            raise NotPackable(f'the kernel misses the weights "{name}"')
        self._kept.append(np.ascontiguousarray(self._states[name].float().numpy()))
        return _pointer(self._kept[-1])

    def _table(self, kind: str) -> NDArray[np.float16] | None:
        name = f"embeddings.{kind}_embeddings.weight"
        if name not in self._states:
            return None
        # Other ways to tell positions than a table are found by the probe.
        table = np.ascontiguousarray(self._states[name].float().numpy().astype(np.float16))
        if not np.isfinite(table).all():
            raise NotPackable(f'values of "{name}" are beyond float16')
        return table


def kernel_is_usable() -> bool:
    """Whether the kernel was compiled and this processor can run it."""
    try:
        return bool(_library().textmatch_is_usable())
    except ImportError:
        return False


def _pointer(array: NDArray[Any] | None) -> _POINTER:
    return _POINTER(array.ctypes.data if array is not None else None)


def _library() -> ctypes.CDLL:
    """Raises ImportError where the kernel was not compiled."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ImportError(f"the kernel was not compiled when textmatch was installed: {error}") from error
    library.textmatch_create.restype = _POINTER
    return library
