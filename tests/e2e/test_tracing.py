"""One trace from a client through every process, as a collector sees it that speaks OTLP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.encoder import make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.stack import Stack, running_stack, wait_until

CLIENT = """
import sys
from textmatch.client import TextMatchClient
from textmatch.runtime.tracing import set_up_tracing

matcher, encoder, endpoint = sys.argv[1:]
set_up_tracing("client", endpoint)
from opentelemetry import trace

with TextMatchClient(matcher, encoder, timeout_seconds=60) as client:
    with trace.get_tracer("test").start_as_current_span("storing") as span:
        print(trace.format_trace_id(span.get_span_context().trace_id))
        assert client.ingest_all([{"id": "a", "text": "the secret cat"}]).accepted == 1
    client.wait_until_searchable()
    with trace.get_tracer("test").start_as_current_span("asking") as span:
        print(trace.format_trace_id(span.get_span_context().trace_id))
        assert client.match("the secret cat", rerank=True).matches
"""


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    text: str


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans of each trace."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = defaultdict(list)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 -- gRPC calls it so
        for resource in request.resource_spans:
            [service] = [
                attribute.value.string_value
                for attribute in resource.resource.attributes
                if attribute.key == "service.name"
            ]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.trace_id.hex()].append(Span(service, span.name, str(span)))
        return trace_service_pb2.ExportTraceServiceResponse()

    def names(self, trace_id: str) -> set[tuple[str, str]]:
        return {(span.service, span.name.rpartition("/")[2]) for span in self.spans[trace_id]}


@dataclass(frozen=True)
class Collecting:
    collector: Collector
    endpoint: str


@pytest.fixture(scope="module")
def collecting() -> Iterator[Collecting]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Collecting(collector, f"http://127.0.0.1:{port}")
    server.stop(None).wait()


@pytest.fixture(scope="module")
def traced_stack(tmp_path_factory: pytest.TempPathFactory, collecting: Collecting) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("traced")
    environment = {
        "TEXTMATCH_BI_ENCODER": str(make_tiny_bi_encoder(directory / "bi-encoder")),
        "TEXTMATCH_CROSS_ENCODER": str(make_tiny_cross_encoder(directory / "cross-encoder")),
        "TEXTMATCH_CACHE_DIR": str(directory / "cache"),
        "TEXTMATCH_OTLP_ENDPOINT": collecting.endpoint,
        "TEXTMATCH_LOG_LEVEL": "DEBUG",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with running_stack(directory / "data", environment) as running:
        yield running


def test_one_trace_goes_through_all_processes(traced_stack: Stack, collecting: Collecting):
    addresses = (traced_stack.file["matcher"], traced_stack.file["encoder"], collecting.endpoint)
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT, *addresses],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "200"},
    )
    assert ran.returncode == 0, ran.stderr
    storing, asking = ran.stdout.split()
    collector = collecting.collector
    expected = {
        storing: {
            ("textmatch-client", "storing"),
            ("textmatch-client", "IngestDocuments"),
            ("textmatch-matcher", "IngestDocuments"),
            ("textmatch-worker", "index_documents"),
            ("textmatch-worker", "Encode"),
            ("textmatch-encoder", "Encode"),
            ("textmatch-worker", "UpdateBatch"),
        },
        asking: {
            ("textmatch-client", "asking"),
            ("textmatch-client", "Match"),
            ("textmatch-matcher", "Match"),
            ("textmatch-matcher", "Encode"),
            ("textmatch-encoder", "Encode"),
            ("textmatch-matcher", "QueryBatch"),
            ("textmatch-matcher", "Score"),
            ("textmatch-encoder", "Score"),
        },
    }
    for trace_id, names in expected.items():
        wait_until(
            lambda trace_id=trace_id, names=names: names <= collector.names(trace_id),
            f"{names} in {sorted(collector.names(trace_id))}",
            seconds=30,
        )
    assert not any("secret cat" in span.text for spans in collector.spans.values() for span in spans)


def test_health_checks_are_not_traced(traced_stack: Stack, collecting: Collecting):
    collector = collecting.collector
    assert not [trace for trace in collector.spans if "Check" in {name for _, name in collector.names(trace)}]


def test_log_lines_carry_the_trace_they_belong_to(traced_stack: Stack, collecting: Collecting):
    with traced_stack.client() as client:
        client.ingest_all([{"id": "b", "text": "the dog"}], wait=True)
    lines = [
        json.loads(line)
        for name in ("matcher", "worker", "encoder")
        for line in Path(traced_stack.data_dir / "logs" / f"{name}.log").read_text().splitlines()
        if line.startswith("{")
    ]
    traced = [line for line in lines if "trace_id" in line]
    assert traced
    assert all(len(line["trace_id"]) == 32 for line in traced)
