"""Embeddings to and from bytes: one block of row-major little-endian float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]

_WIRE_DTYPE = np.dtype("<f4")


def pack(embeddings: Embeddings) -> bytes:
    """(count, dimension) float32 -> count * dimension * 4 bytes."""
    return np.ascontiguousarray(embeddings, dtype=_WIRE_DTYPE).tobytes()


def unpack(block: bytes, dimension: int) -> Embeddings:
    """Bytes -> (count, dimension) float32, read-only and without a copy.

    Raises:
        ValueError: the block does not consist of whole rows.
    """
    if dimension < 1:
        raise ValueError(f"dimension is {dimension}; it must be at least 1")
    row_bytes = dimension * _WIRE_DTYPE.itemsize
    if len(block) % row_bytes:
        raise ValueError(f"{len(block)} bytes are not whole rows of {dimension} float32 ({row_bytes} bytes)")
    rows: Embeddings = np.frombuffer(block, dtype=_WIRE_DTYPE).reshape(-1, dimension)
    return rows


def normalise(embeddings: Embeddings) -> Embeddings:
    """(count, dimension) with rows of length 1. A zero row stays zero."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)  # (count, 1)
    normalised: Embeddings = embeddings / np.maximum(lengths, np.finfo(np.float32).tiny)
    return normalised
