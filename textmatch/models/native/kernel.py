"""The binding of the C++ kernel for numpy arrays, and the cache of its weights. Does not import torch."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_log = logging.getLogger(__name__)

LIBRARY = Path(__file__).parent / "libtransformer.so"
LAYER_MODULES = ("query", "key", "value", "output", "attention_norm", "up", "down", "norm")
TABLES = ("words", "positions", "types")

Arrays = Mapping[str, NDArray[Any]]
Ids = NDArray[np.int64]
States = NDArray[np.float32]

# Incremented when the names or the shape change: files of older versions must not be found.
_FORM = 1
_DESCRIPTION = "description"
# Of the format safetensors: 8 bytes with the length of a JSON header, the header, the arrays.
_HEADER_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_NUMPY_TYPES = {"F16": np.float16, "F32": np.float32}
_EMBEDDING_ARRAYS = (*TABLES, "norm", "norm_bias", "projection", "projection_bias")
_LAYER_ARRAYS = tuple(name + part for name in LAYER_MODULES for part in ("", "_bias"))


class KernelMissing(ImportError):
    """The kernel was not compiled when textmatch was installed, or cannot run on this processor."""


class UnreadableCache(Exception):
    """The file does not exist, or its content is not what was expected."""


class CpuFeature(IntFlag):
    """Features that a kernel may need; the values are those in transformer.cpp."""

    AVX512 = 1
    AVX512_BF16 = 2
    AMX_BF16 = 4
    AMX_PERMISSION = 8  # of the operating system: Linux 5.16 or newer


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
        arrays: contiguous weights. `words`, `positions` and the optional `types` are float16 tables of
            (entries, embedding). All others are float32, matrices (outputs, inputs): `norm`, `norm_bias`,
            `projection`, `projection_bias`, and for each layer with weights of its own `layers.N.`
            and LAYER_MODULES, with and without `_bias`.
        threads: that share a batch; 0 is one for each core.

    Raises:
        KernelMissing: the kernel is not compiled or cannot run here.
        ValueError: an array is missing or has another type or shape than the sizes say.
    """

    def __init__(self, shape: KernelShape, arrays: Arrays, threads: int) -> None:
        # Also requests permission to use tiles from the operating system.
        if obstacle := kernel_obstacle():
            raise KernelMissing(obstacle)
        self.shape = shape
        self._library = _library()
        _check_arrays(shape, arrays)
        # The kernel copies all arrays but these.
        self._tables = {name: arrays[name] for name in TABLES if name in arrays}
        layers = _layers(arrays)
        sizes = {name: value for name, value in asdict(shape).items() if name != "first_position"}
        self._transformer = ctypes.c_void_p(
            self._library.textmatch_create(
                ctypes.byref(_Shape(**sizes)),
                ctypes.byref(_Embedding(*_pointers(arrays, _EMBEDDING_ARRAYS))),
                (_Layer * len(layers))(*layers),
                ctypes.c_int64(len(layers)),
                ctypes.c_int64(threads or len(os.sched_getaffinity(0))),
            )
        )

    @classmethod
    def load(cls, path: Path, threads: int) -> Kernel:
        """Make a kernel of the weights in the cache.

        Raises:
            KernelMissing: the kernel is not compiled or cannot run here.
            UnreadableCache: the file does not exist or holds something else.
        """
        sizes, arrays = read_cache(path)
        try:
            return cls(KernelShape(**sizes), arrays, threads)
        except (TypeError, ValueError) as error:
            raise UnreadableCache(f'"{path}": {error}') from error

    def __del__(self) -> None:
        if hasattr(self, "_transformer"):
            self._library.textmatch_destroy(self._transformer)

    def run(self, ids: Ids, type_ids: Ids, starts: Ids, lengths: Ids, states: States) -> None:
        """One forward pass.

        Args:
            ids: (places,) contiguous, as is `type_ids`.
            type_ids: 0 or 1 for each token: its text within a pair.
            starts: (count,), the place of each text's first token.
            lengths: (count,), tokens of each text.
            states: (places, hidden) contiguous; the last states are written to the places of tokens.

        Raises:
            IndexError: the model has no embedding for an id or a position.
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
        """Check the ids: the kernel does not, and would read past the end of its tables."""
        if ids.min() < 0:
            raise IndexError(f"ids are positive; {ids.min()} was asked for")
        last_position = self.shape.first_position + lengths.max() - 1
        for name, last in zip(TABLES, (ids.max(), last_position, type_ids.max()), strict=True):
            table = self._tables.get(name)
            if table is not None and last >= len(table):
                raise IndexError(f"the model has {len(table)} {name}; number {last} was asked for")


def kernel_obstacle(present: CpuFeature | None = None) -> str:
    """Why the kernel cannot run here; empty if it can.

    Args:
        present: features of the processor and the operating system; None: detect them.
    """
    try:
        library = _library()
    except KernelMissing as error:
        return str(error)
    if present is None:
        present = CpuFeature(library.textmatch_present_features())
    missing = CpuFeature(library.textmatch_needed_features()) & ~present
    names = [str(feature.name).replace("_", "-") for feature in missing]
    return f"this processor or operating system lacks {', '.join(names)}" if names else ""


def weights_path(cache_directory: Path, model_id: str) -> Path:
    """The file of a model's weights in the cache."""
    return cache_directory / f"{model_id}-native-{_FORM}.safetensors"


def write_cache(path: Path, description: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a description and arrays into one safetensors file.

    The file appears complete or not at all. A cache that cannot be written is logged and is not an error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unfinished = Path(scratch) / path.name
            save_file(dict(arrays), unfinished, {_DESCRIPTION: json.dumps(description)})
            unfinished.replace(path)
    except OSError as error:
        _log.warning("cannot write into the cache: %s", error)


def read_cache(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `write_cache` wrote.

    The arrays are mapped into memory, read-only: only rows of a table that are used take memory, which all
    processes that read the file share.

    Raises:
        UnreadableCache: the file does not exist or holds something else.
    """
    try:
        with path.open("rb") as file:
            (length,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        description: dict[str, Any] = json.loads(header.pop(_METADATA)[_DESCRIPTION])
        start = _HEADER_LENGTH.size + length
        return description, {name: _mapped(path, start, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UnreadableCache(f'"{path}": {error}') from error


def _mapped(path: Path, start: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    offset = start + entry["data_offsets"][0]
    return np.asarray(np.memmap(path, _NUMPY_TYPES[entry["dtype"]], "r", offset, tuple(entry["shape"])))


def _check_arrays(shape: KernelShape, arrays: Arrays) -> None:
    """Check types and shapes: the kernel reads as many values as the sizes say."""
    if (
        min(shape.hidden, shape.heads, shape.inner, shape.layers, shape.embedding) < 1
        or shape.first_position < 0
    ):
        raise ValueError("sizes must be positive")
    if shape.hidden % shape.heads:
        raise ValueError(f"{shape.hidden} dimensions cannot be shared by {shape.heads} heads")
    expected: dict[str, tuple[int, ...]] = {
        name: (len(arrays.get(name, ())), shape.embedding) for name in ("words", "positions")
    }
    expected |= {"norm": (shape.embedding,), "norm_bias": (shape.embedding,)}
    if "types" in arrays:
        expected["types"] = (len(arrays["types"]), shape.embedding)
    if "projection" in arrays or shape.embedding != shape.hidden:
        expected |= {"projection": (shape.hidden, shape.embedding), "projection_bias": (shape.hidden,)}
    matrices = dict.fromkeys(LAYER_MODULES, (shape.hidden, shape.hidden))
    matrices |= {"up": (shape.inner, shape.hidden), "down": (shape.hidden, shape.inner)}
    for number in range(max(1, len(_layers(arrays)))):
        for name, (outputs, inputs) in matrices.items():
            is_norm = name.endswith("norm")
            expected[f"layers.{number}.{name}"] = (outputs,) if is_norm else (outputs, inputs)
            expected[f"layers.{number}.{name}_bias"] = (outputs,)
    # Also those of layers behind a missing one.
    if unexpected := sorted(arrays.keys() - expected.keys()):
        raise ValueError(f'there are unexpected arrays such as "{unexpected[0]}"')
    for name, size in expected.items():
        array = arrays.get(name)
        dtype = np.float16 if name in TABLES else np.float32
        if array is None or array.shape != size or array.dtype != dtype or not array.flags.c_contiguous:
            found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
            raise ValueError(f'the array "{name}" {found}; it must be {np.dtype(dtype)} {size}')


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
    if not hasattr(library, "textmatch_needed_features"):
        raise KernelMissing(f"{LIBRARY} is of another version; run python -m textmatch.models.native.build")
    library.textmatch_create.restype = ctypes.c_void_p
    return library
