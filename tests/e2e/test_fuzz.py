"""Every RPC of the real servers gets random requests: no crash, no hang, no INTERNAL.

Ten seconds by default; TEXTMATCH_FUZZ_SECONDS=600 makes it ten minutes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.support.encoder import is_serving, make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.fuzzing import requests
from tests.support.stack import Stack, running_stack
from textmatch.runtime.grpc_errors import DETAILS_METADATA_KEY
from textmatch.v1 import collection_service_pb2, encoder_service_pb2, matcher_service_pb2

SECONDS = float(os.environ.get("TEXTMATCH_FUZZ_SECONDS", "10"))
EXAMPLES_AT_A_TIME = 20
ANSWER_SECONDS = 30.0
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture(scope="module")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("fuzzed")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(make_tiny_bi_encoder(directory / "bi-encoder")),
        "TEXTMATCH_CROSS_ENCODER": str(make_tiny_cross_encoder(directory / "cross-encoder")),
        "TEXTMATCH_CACHE_DIR": str(directory / "cache"),
    }
    with running_stack(directory / "data", environment) as running:
        yield running


def every_rpc() -> dict[str, Descriptor]:
    services = [
        encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"],
        matcher_service_pb2.DESCRIPTOR.services_by_name["MatcherService"],
        collection_service_pb2.DESCRIPTOR.services_by_name["CollectionService"],
    ]
    return {
        f"/{service.full_name}/{method.name}": method.input_type
        for service in services
        for method in service.methods
    }


def send(channel: grpc.Channel, method: str, request: bytes) -> grpc.StatusCode:
    """The code of the answer, which must be one of those that a bad request may get.

    Sent as a stream of one, which is the same on the wire for methods that take one request.
    """
    call = channel.stream_stream(method)(iter([request]), timeout=ANSWER_SECONDS)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    code = call.code()
    assert code in ALLOWED, f"{method} answered {code}: {call.details()}"
    if code is not grpc.StatusCode.OK:
        assert DETAILS_METADATA_KEY in dict(call.trailing_metadata()), f"{method} does not say why"
    return code


def test_no_request_makes_a_server_crash_hang_or_answer_internal(tiny_stack: Stack):
    pids = {process["name"]: process["pid"] for process in tiny_stack.file["processes"]}
    with tiny_stack.client() as client:
        client.ingest_all([{"id": f"id-{n}", "text": f"the cat {n} sits"} for n in range(20)], wait=True)
    answers: Counter[tuple[str, str]] = Counter()
    deadline, turn = time.monotonic() + SECONDS, 0
    options = [("grpc.enable_retries", 0)]
    with (
        grpc.insecure_channel(tiny_stack.file["encoder"], options) as encoder,
        grpc.insecure_channel(tiny_stack.file["matcher"], options) as matcher,
    ):
        while time.monotonic() < deadline:
            for method, input_type in every_rpc().items():
                channel = encoder if "Encoder" in method else matcher
                fuzz(channel, method, input_type, turn, answers)
            turn += 1

    for (method, code), count in sorted(answers.items()):
        print(f"{method} {code} {count:,}")
    print(f"{answers.total():,} requests, {len(every_rpc())} RPCs")
    assert {method for method, _ in answers} == set(every_rpc())
    assert {"OK", "INVALID_ARGUMENT"} <= {code for _, code in answers}
    assert {name: tiny_stack.pid(name) for name in pids} == pids
    assert is_serving(tiny_stack.file["encoder"])
    assert is_serving(tiny_stack.file["matcher"])
    assert_works(tiny_stack)
    assert_no_error_was_logged(tiny_stack.data_dir / "logs")


def fuzz(
    channel: grpc.Channel, method: str, input_type: Descriptor, turn: int, answers: Counter[tuple[str, str]]
) -> None:
    """Some requests to one method; which ones, depends on the turn alone."""

    @seed(turn)
    @settings(
        max_examples=EXAMPLES_AT_A_TIME,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(request=requests(input_type))
    def run(request: bytes) -> None:
        answers[method, send(channel, method, request).name] += 1

    run()


def assert_works(stack: Stack) -> None:
    """What a server does for its next caller is right."""
    with stack.client() as client:
        client.ingest_all([{"id": "after", "text": "the dog runs in the park"}], wait=True)
        assert client.match("the dog runs in the park").matches[0].document.id == "after"


def assert_no_error_was_logged(logs: Path) -> None:
    for name in ("encoder", "matcher", "worker"):
        lines = (logs / f"{name}.log").read_text().splitlines()
        assert [line for line in lines if '"level": "ERROR"' in line or "Traceback" in line] == []
