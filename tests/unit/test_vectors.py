from __future__ import annotations

import struct

import numpy as np
import pytest

from textmatch import vectors


def test_the_wire_form_is_row_major_little_endian_float32():
    block = vectors.pack(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
    assert block == struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)


def test_unpack_gives_back_what_was_packed():
    embeddings = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    assert np.array_equal(vectors.unpack(vectors.pack(embeddings), 7), embeddings)
    assert np.array_equal(vectors.unpack(vectors.pack(embeddings[:, ::-1]), 7), embeddings[:, ::-1])


def test_unpack_refuses_what_are_not_whole_rows():
    with pytest.raises(ValueError, match="12 bytes are not whole rows of 2 float32"):
        vectors.unpack(b"\0" * 12, 2)
    with pytest.raises(ValueError, match="at least 1"):
        vectors.unpack(b"", 0)


def test_normalise_makes_rows_of_length_one_and_keeps_zero_rows():
    normalised = vectors.normalise(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    assert normalised.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
