"""What the answers of a real Qdrant (1.18.3) mean."""

from __future__ import annotations

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from tests.support.grpc_proxy import REFUSALS, Refusal
from textmatch.errors import DependencyUnavailable, InvalidInput, Overloaded, StoreRefuses, reason_name
from textmatch.index.qdrant_errors import ReplicasMissing, RequestTooLarge, translated_error

SHARDS = "shards failed to apply operation. First error captured: Service internal error:"


def rpc_error(code: StatusCode, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_what_an_operator_must_end_says_so(refusal: Refusal):
    error = translated_error(rpc_error(refusal.code, refusal.details))
    assert isinstance(error, StoreRefuses)
    assert reason_name(error.reason) == refusal.reason
    assert refusal.details in str(error)
    assert error.retry_delay_seconds
    assert error.is_transient


@pytest.mark.parametrize("code", [StatusCode.UNIMPLEMENTED, StatusCode.DATA_LOSS, StatusCode.OUT_OF_RANGE])
def test_what_is_not_known_waits_for_an_operator(code: StatusCode):
    assert isinstance(translated_error(rpc_error(code, "?")), StoreRefuses)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (StatusCode.UNAVAILABLE, "failed to connect to all addresses"),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (StatusCode.UNKNOWN, "Stream removed"),
        (StatusCode.INTERNAL, f"3 out of 3 {SHARDS} 'The service is currently unavailable'"),
        (StatusCode.INTERNAL, "The replica set for shard 0 on peer 1 does not have enough active replicas"),
        (StatusCode.INTERNAL, "1 of 3 read operations failed: tcp connect error"),
        (
            StatusCode.FAILED_PRECONDITION,
            "Pre-condition failure: No target shard 2 found for update",
        ),
    ],
)
def test_what_passes_by_itself_does_not(code: StatusCode, details: str):
    error = translated_error(rpc_error(code, details))
    assert type(error) is DependencyUnavailable
    assert error.retry_delay_seconds


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (StatusCode.INTERNAL, f"2 out of 3 {SHARDS} 'The service is currently unavailable'"),
        (
            StatusCode.FAILED_PRECONDITION,
            f"Pre-condition failure: 1 out of 3 {SHARDS} No target shard 2 found for update",
        ),
    ],
)
def test_a_write_that_some_shards_applied_must_be_sent_again(code: StatusCode, details: str):
    assert type(translated_error(rpc_error(code, details))) is ReplicasMissing


def test_a_rate_limit_passes_after_the_time_that_qdrant_names():
    error = translated_error(ResourceExhaustedResponse("Rate limiting exceeded", retry_after_s=30))
    assert isinstance(error, Overloaded)
    assert error.retry_delay_seconds == 30.0
    assert isinstance(
        translated_error(rpc_error(StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded")), Overloaded
    )


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (StatusCode.INVALID_ARGUMENT, REFUSALS["strict limit"].details),
        (StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (70000000 vs. 67108864)"),
    ],
)
def test_a_request_that_is_too_large_is_told_apart(code: StatusCode, details: str):
    assert isinstance(translated_error(rpc_error(code, details)), RequestTooLarge)


def test_a_callers_filter_is_the_callers_error():
    details = 'Bad request: Index required but not found for "attributes.year" of one of the following types'
    error = translated_error(rpc_error(StatusCode.INVALID_ARGUMENT, details))
    assert isinstance(error, InvalidInput)
    assert str(error).startswith("filter: ")
    other = translated_error(rpc_error(StatusCode.INVALID_ARGUMENT, "Wrong input: Vector dimension error"))
    assert type(other) is InvalidInput


@pytest.mark.parametrize("code", [StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS])
def test_what_callers_expect_stays_as_it_is(code: grpc.StatusCode):
    error = rpc_error(code, "Wrong input: Collection `x` already exists!")
    assert translated_error(error) is error
