"""OpenTelemetry traces over OTLP. While tracing is off, OpenTelemetry is not imported.

gRPC calls, also those to Qdrant, are traced by OpenTelemetry's own instrumentation. This module adds
the rest: traces that continue through the queue, and trace ids in the logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from textmatch.errors import InvalidInput

_TRACEPARENT = "traceparent"
# The attribute of spans that names the collection.
COLLECTION_ATTRIBUTE = "textmatch.collection"

_is_on = False


def set_up_tracing(service: str, endpoint: str, sample_ratio: float = 1.0) -> None:
    """Turn tracing on. Call this before any server or channel is created.

    Args:
        service: name shown with every span.
        endpoint: of the collector, `http://host:4317` or `https://`; empty: no tracing.
        sample_ratio: share of the traces that start here; a caller's decision is followed.

    Raises:
        InvalidInput: the packages of the extra `tracing` are missing.
    """
    global _is_on  # noqa: PLW0603 -- as OpenTelemetry's own provider, there is one for the process
    if not endpoint:
        return
    try:
        _instrument(service, endpoint, sample_ratio)
    except ImportError as error:
        reason = f"needs the packages of textmatch[tracing]; {error.name} is missing"
        raise InvalidInput.of_field("TEXTMATCH_OTLP_ENDPOINT", reason) from error
    _is_on = True


def current_traceparent() -> str:
    """The trace of the running call in W3C form; empty without a trace."""
    if not _is_on:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_TRACEPARENT, "")


def trace_id() -> str:
    """Trace id of the running call, 32 hexadecimal digits; empty without a trace."""
    if not _is_on:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


@contextmanager
def consuming(name: str, traceparents: Sequence[str], *, collection: str) -> Iterator[None]:
    """A span for work on several messages. It continues the first message's trace and links to the others.

    Args:
        traceparents: W3C traces of the messages; malformed ones are ignored.
        collection: of the messages; an attribute of the span.
    """
    if not _is_on:
        yield
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    extract = TraceContextTextMapPropagator().extract
    contexts = [extract({_TRACEPARENT: one}) for one in dict.fromkeys(traceparents) if one]
    links = [trace.Link(trace.get_current_span(one).get_span_context()) for one in contexts[1:]]
    parent = contexts[0] if contexts else None
    tracer = trace.get_tracer("textmatch")
    with tracer.start_as_current_span(
        name, parent, kind=trace.SpanKind.CONSUMER, links=links, attributes={COLLECTION_ATTRIBUTE: collection}
    ):
        yield


def note_collection(name: str) -> None:
    """Make the collection an attribute of the running call's span."""
    if _is_on:
        from opentelemetry import trace

        trace.get_current_span().set_attribute(COLLECTION_ATTRIBUTE, name)


def _instrument(service: str, endpoint: str, sample_ratio: float) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.grpc import (
        GrpcAioInstrumentorClient,
        GrpcAioInstrumentorServer,
        GrpcInstrumentorClient,
        filters,
    )
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: f"textmatch-{service}"}),
        sampler=ParentBasedTraceIdRatio(sample_ratio),
    )
    # Created before channels are instrumented: the exporter's own calls must not be traced.
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    for instrumentor in (GrpcAioInstrumentorServer, GrpcAioInstrumentorClient, GrpcInstrumentorClient):
        instrumentor(filter_=filters.negate(filters.health_check())).instrument()
