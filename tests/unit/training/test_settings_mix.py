from __future__ import annotations

import pytest

from textmatch.errors import InvalidInput
from training.settings import parse_mix


def test_shares_are_numbers_one_for_each_part():
    assert parse_mix("3,2,0.5", 3) == (3.0, 2.0, 0.5)
    assert parse_mix("", 3) == ()


@pytest.mark.parametrize("text", ["3,2", "3,0,1", "3,x,1", "1,-1,1", "1,nan,1", "inf,1,1"])
def test_other_shares_are_refused(text: str):
    with pytest.raises(InvalidInput, match="mix"):
        parse_mix(text, 3)
