from __future__ import annotations

import pytest

from textmatch.errors import Overloaded
from textmatch.runtime.auth import ApiKey, RateLimits, Scope


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def key(name: str = "reader", tokens_per_second: float | None = 10.0) -> ApiKey:
    return ApiKey(name, frozenset([Scope.READ]), name.encode(), tokens_per_second)


def test_ten_seconds_of_allowance_may_be_used_at_once_and_then_no_more():
    limits = RateLimits(Clock())
    for _ in range(10):
        limits.charge(key(), 36)  # ten tokens
    with pytest.raises(Overloaded) as raised:
        limits.charge(key(), 36)
    assert raised.value.retry_delay_seconds == pytest.approx(0.1)


def test_the_delay_that_is_told_is_long_enough_and_not_longer():
    clock = Clock()
    limits = RateLimits(clock)
    limits.charge(key(), 100_000)  # of any size, as long as anything is left
    with pytest.raises(Overloaded) as raised:
        limits.charge(key(), 4)
    delay = raised.value.retry_delay_seconds
    assert delay == pytest.approx((25_001 - 100 + 1) / 10)
    clock.seconds += delay * 0.99
    with pytest.raises(Overloaded):
        limits.charge(key(), 4)
    clock.seconds += delay * 0.01
    limits.charge(key(), 4)


def test_on_average_nobody_gets_more_than_the_allowance():
    clock = Clock()
    limits = RateLimits(clock)
    taken = 0
    for _ in range(10_000):
        clock.seconds += 0.1
        try:
            limits.charge(key(), 76)  # twenty tokens
        except Overloaded:
            continue
        taken += 20
    assert taken == pytest.approx(1_000 * 10 + 100, rel=0.01)


def test_keys_of_one_name_share_the_allowance_and_others_do_not():
    limits = RateLimits(Clock())
    limits.charge(key(), 1_000)
    with pytest.raises(Overloaded):
        limits.charge(ApiKey("reader", frozenset(), b"another", 10.0), 4)
    limits.charge(key("other"), 4)


def test_a_key_without_a_limit_is_never_refused():
    limits = RateLimits(Clock())
    for _ in range(100):
        limits.charge(key(tokens_per_second=None), 10**9)
        limits.charge_work(key(tokens_per_second=None), 10**9)


def test_work_that_is_done_is_charged_even_if_the_bucket_is_empty():
    clock = Clock()
    limits = RateLimits(clock)
    limits.charge_work(key(), 90)
    limits.charge_work(key(), 60)
    with pytest.raises(Overloaded) as raised:
        limits.charge(key(), 4)
    assert raised.value.retry_delay_seconds == pytest.approx(5.1)
    clock.seconds += 5.1
    limits.charge(key(), 4)
