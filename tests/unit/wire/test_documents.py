"""Documents on the wire: attributes to and from protobuf's Struct."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from textmatch.documents import attributes_violation
from textmatch.wire.documents import from_struct, to_struct

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _VALUES, max_size=4))
def test_attributes_survive_the_journey(attributes: dict[str, Any]):
    assert from_struct(to_struct(attributes)) == attributes


@pytest.mark.parametrize(
    ("number", "expected"),
    [(3.0, 3), (-0.0, 0), (2.0**53 - 1, 2**53 - 1), (2.0**53, 2.0**53), (1e300, 1e300), (0.5, 0.5)],
)
def test_whole_numbers_become_int_while_a_double_is_exact(number: float, expected: float):
    struct = Struct()
    struct.update({"n": number})
    value = from_struct(struct)["n"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_is_left_for_the_check_to_name(number: float):
    struct = Struct()
    struct.update({"n": number})
    assert attributes_violation("attributes", from_struct(struct)) is not None
