"""The kernel in `native/` as numpy sees it. Free of torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmatch.models.model_cache import read_cache

NAME = "native"
LIBRARY = Path(__file__).parent / "libtransformer.so"
LAYER_MODULES = ("query", "key", "value", "output", "attention_norm", "up", "down", "norm")
TABLES = ("words", "positions", "types")

Arrays = Mapping[str, NDArray[Any]]
Ids = NDArray[np.int64]
States = NDArray[np.float32]

# Counted up when the names or the shape change, so that files of older versions are not found.
_FORM = 1
_EMBEDDING_ARRAYS = (*TABLES, "norm", "norm_bias", "projection", "projection_bias")
_LAYER_ARRAYS = tuple(name + part for name in LAYER_MODULES for part in ("", "_bias"))


class KernelMissing(ImportError):
    """The kernel was not compiled when textmatch was installed, or does not run on this processor."""


@dataclass(frozen=True)
class KernelShape:
    """Sizes of a transformer. `activation` is 0 for GELU, 1 for its tanh form, 2 for ReLU."""

    hidden: int
    heads: int
    inner: int
    layers: int
    embedding: int
    activation: int
    norm_epsilon: float
    # The position of a text's first token.
    first_position: int


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "heads", "inner", "layers", "embedding")),
        ("activation", ctypes.c_int32),
        ("norm_epsilon", ctypes.c_float),
    )


class _Embedding(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in _EMBEDDING_ARRAYS)


class _Layer(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in _LAYER_ARRAYS)


class Kernel:
    """A transformer in the kernel; `run` is called from one thread at a time.

    Args:
        shape: its sizes.
        arrays: contiguous weights. `words`, `positions` and, if there are any, `types` are float16 tables of
            (entries, embedding). All others are float32, matrices (outputs, inputs): `norm`, `norm_bias`,
            `projection`, `projection_bias`, and for each layer that differs from the one before `layers.N.`
            and LAYER_MODULES, with and without `_bias`.
        threads: that a batch is spread over.

    Raises:
        KernelMissing: there is no kernel.
    """

    def __init__(self, shape: KernelShape, arrays: Arrays, threads: int) -> None:
        self.shape = shape
        self._library = _library()
        # This also asks the system to let us use tiles.
        if not self._library.textmatch_is_usable():
            raise KernelMissing("this processor or this system has no AMX")
        # The kernel reads them where they are; all else it copies.
        self._tables = {name: arrays[name] for name in TABLES if name in arrays}
        layers = _layers(arrays)
        sizes = {name: value for name, value in asdict(shape).items() if name != "first_position"}
        self._transformer = ctypes.c_void_p(
            self._library.textmatch_create(
                ctypes.byref(_Shape(**sizes)),
                ctypes.byref(_Embedding(*_pointers(arrays, _EMBEDDING_ARRAYS))),
                (_Layer * len(layers))(*layers),
                ctypes.c_int64(len(layers)),
                ctypes.c_int64(threads),
            )
        )

    @classmethod
    def load(cls, path: Path, threads: int) -> Kernel:
        """One that was kept by `keep`.

        Raises:
            KernelMissing: there is no kernel.
            UnreadableCache: the file is missing, or no such file.
        """
        sizes, arrays = read_cache(path)
        return cls(KernelShape(**sizes), arrays, threads)

    def __del__(self) -> None:
        if hasattr(self, "_transformer"):
            self._library.textmatch_destroy(self._transformer)

    def run(self, ids: Ids, type_ids: Ids, starts: Ids, lengths: Ids, states: States) -> None:
        """One forward pass.

        Args:
            ids: (places,) contiguous, as is `type_ids`.
            type_ids: which text of a pair a token is of.
            starts: (count,), where each text begins.
            lengths: (count,), tokens of each text.
            states: (places, hidden) contiguous; the last states are written to the places of tokens.

        Raises:
            IndexError: the model has no embedding for an id, or for so late a position.
        """
        self._check(ids, type_ids, lengths)
        self._library.textmatch_run(
            self._transformer,
            *(ctypes.c_void_p(array.ctypes.data) for array in (ids, type_ids, starts, lengths)),
            ctypes.c_int64(len(lengths)),
            ctypes.c_int64(self.shape.first_position),
            ctypes.c_void_p(states.ctypes.data),
        )

    def _check(self, ids: Ids, type_ids: Ids, lengths: Ids) -> None:
        """The kernel trusts what it is given, and would read behind its tables."""
        last_position = self.shape.first_position + lengths.max() - 1
        for name, last in zip(TABLES, (ids.max(), last_position, type_ids.max()), strict=True):
            table = self._tables.get(name)
            if table is not None and last >= len(table):
                raise IndexError(f"the model knows {len(table)} {name}, and {last} was asked for")


def weights_path(cache_directory: Path, model_id: str) -> Path:
    """Where the weights of a model are kept."""
    return cache_directory / f"{model_id}-{NAME}-{_FORM}.safetensors"


def kernel_is_usable() -> bool:
    """Whether the kernel was compiled and this processor can run it."""
    try:
        return bool(_library().textmatch_is_usable())
    except KernelMissing:
        return False


def _layers(arrays: Arrays) -> list[_Layer]:
    layers: list[_Layer] = []
    while (prefix := f"layers.{len(layers)}.") + LAYER_MODULES[0] in arrays:
        layers.append(_Layer(*_pointers(arrays, [prefix + name for name in _LAYER_ARRAYS])))
    return layers


def _pointers(arrays: Arrays, names: Sequence[str]) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(arrays[name].ctypes.data if name in arrays else None) for name in names]


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise KernelMissing(f"the kernel was not compiled when textmatch was installed: {error}") from error
    library.textmatch_create.restype = ctypes.c_void_p
    return library
