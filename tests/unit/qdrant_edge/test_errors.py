"""Failures of the engine as statuses of a call."""

from __future__ import annotations

import grpc
import pytest

from standalone.qdrant_edge.errors import RequestError, as_request_error, engine_call


class PanicException(BaseException):
    """As the engine's own: not an Exception, and known by its name only."""


def _panic() -> None:
    raise PanicException("index out of bounds")


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_panic_fails_the_call_and_nothing_else():
    with pytest.raises(RequestError) as caught:
        engine_call(_panic)
    assert caught.value.code == grpc.StatusCode.INTERNAL
    assert "index out of bounds" in caught.value.details


def test_an_interrupt_is_not_a_panic():
    with pytest.raises(KeyboardInterrupt):
        engine_call(_interrupt)


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (
            Exception("Vector dimension error: expected dim: 4, got 3"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Wrong input: Vector dimension error: expected dim: 4, got 3",
        ),
        (
            ValueError("invalid JSON path a["),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Wrong input: invalid JSON path a[",
        ),
        (Exception("No point with id 7"), grpc.StatusCode.NOT_FOUND, "Not found: No point with id 7"),
        (
            Exception("Service runtime error: disk full"),
            grpc.StatusCode.INTERNAL,
            "Service internal error: Service runtime error: disk full",
        ),
    ],
)
def test_failures_of_the_engine_get_the_servers_codes(error: Exception, code: grpc.StatusCode, details: str):
    failure = as_request_error(error)
    assert (failure.code, failure.details) == (code, details)
