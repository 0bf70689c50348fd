"""The synchronous client of the matcher and the encoder. No protobuf in its arguments and results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenacity import Retrying, retry_if_result, wait_exponential

from textmatch.client.connection import Connection, UnaryMethod, chunks, utf8_bytes
from textmatch.client.ingest import IngestStream
from textmatch.documents import Document, id_violation, text_violation, version_violation
from textmatch.errors import DeadlinePassed, InvalidInput, Violation, raise_violations
from textmatch.filters import Filter
from textmatch.runtime.tls import ClientTls
from textmatch.types import (
    BatchMatchResult,
    DocumentResult,
    EncodeResult,
    HealthState,
    IngestOutcome,
    IngestStatus,
    IngestSummary,
    MatchKeywords,
    MatchOptions,
    MatchResult,
    ModelInfo,
    Rerank,
    Role,
    Scorer,
    ScoreResult,
    ServerHealth,
)
from textmatch.v1 import encoder_service_pb2 as encoder_pb
from textmatch.v1 import matcher_service_pb2 as matcher_pb
from textmatch.v1.encoder_service_pb2_grpc import EncoderServiceStub
from textmatch.v1.matcher_service_pb2_grpc import MatcherServiceStub
from textmatch.wire.documents import DocumentLike, from_proto, ingest_status_from_proto
from textmatch.wire.encoding import ROLES, SCORERS, encode_result, model_info, priority, score_result
from textmatch.wire.matching import (
    batch_result_from_proto,
    default_candidate_count,
    filter_to_proto,
    options_to_proto,
    result_from_proto,
)

Item = TypeVar("Item")
EncoderRequest = TypeVar("EncoderRequest", encoder_pb.EncodeRequest, encoder_pb.ScoreRequest)
Response = TypeVar("Response")
TextPair = tuple[str, str]

DEFAULT_MATCHER = "127.0.0.1:50052"
DEFAULT_ENCODER = "127.0.0.1:50051"
# More texts than this go in the bulk lane.
_MAX_INTERACTIVE_TEXTS = 64
_QUERIES_PER_CALL = 100
_IDS_PER_CALL = 1_000
_MAX_REJECTIONS = 100
# The client gives up after this time in which the matcher accepts no document, or the queue does not shrink.
_STALL_TIMEOUT_SECONDS = 120.0
_FIRST_POLL_SECONDS = 0.05
_LAST_POLL_SECONDS = 1.0
_HEALTH_TIMEOUT_SECONDS = 2.0
_RERANK_OF_KEYWORD = {None: Rerank.AUTO, False: Rerank.NONE, True: Rerank.CROSS_ENCODER}


class TextMatchClient:
    """Talks to a matcher and an encoder.

        with TextMatchClient() as client:
            client.ingest_all([{"id": "rm", "text": "delete a folder and everything in it"}], wait=True)
            for match in client.match("remove a directory tree", top_k=3):
                print(match.score, match.document.id, match.document.text)

    Connects on the first call, and reconnects after a server was unavailable. Threads may share a client.
    Every failure is a `textmatch.errors.TextMatchError`:

    * `InvalidInput` names every invalid argument;
    * `ServerUnreachable`, a `DependencyUnavailable`: no server answers at the address;
    * `DeadlinePassed`: the answer took longer than the timeout;
    * `Unauthenticated` and `PermissionDenied`: the API key is not valid or lacks a scope;
    * `Overloaded`: the server has too much queued work; retry after `retry_delay_seconds`.

    Args:
        matcher: a gRPC target: `host:port`, or `dns:///name:port` for all replicas behind a name.
        encoder: the same. Each server is needed only for the methods that use it.
        timeout_seconds: of one interactive call.
        bulk_timeout_seconds: of one call of bulk work: a batch of documents, a hundred queries of
            `batch_match`, or a part of more than 64 texts.
        api_key: for both servers; empty if they require none.
        tls: the CA to trust, and the client certificate if one is required. None: not encrypted.
    """

    def __init__(
        self,
        matcher: str = DEFAULT_MATCHER,
        encoder: str = DEFAULT_ENCODER,
        *,
        timeout_seconds: float = 10.0,
        bulk_timeout_seconds: float = 300.0,
        api_key: str = "",
        tls: ClientTls | None = None,
    ) -> None:
        self._matcher = Connection("matcher", matcher, api_key, tls)
        self._encoder = Connection("encoder", encoder, api_key, tls)
        self._matcher_stub = MatcherServiceStub(self._matcher.channel)
        self._encoder_stub = EncoderServiceStub(self._encoder.channel)
        self._timeout_seconds = timeout_seconds
        self._bulk_timeout_seconds = bulk_timeout_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; running calls are cancelled."""
        self._matcher.close()
        self._encoder.close()

    def match(self, query: str, **options: Unpack[MatchKeywords]) -> MatchResult:
        """The stored documents that mean about the same as the query, the best first.

        Args:
            query: the text to look for.
            options: `top_k`, `where`, `min_score` and others; see `MatchOptions`.

        Raises:
            TypeError: an option does not exist.
        """
        raise_violations([text_violation("query", query)])
        request = matcher_pb.MatchRequest(query=query, options=_to_proto(options))
        response = self._matcher.call(self._matcher_stub.Match, request, self._timeout_seconds)
        return result_from_proto(query, response)

    def batch_match(
        self, queries: Sequence[str], **options: Unpack[MatchKeywords]
    ) -> Iterator[BatchMatchResult]:
        """Match any number of queries, in the bulk lane. Options as for `match`.

        Results come as soon as they are ready, each with the position of its query. A query that fails comes
        with its error and does not stop the others.
        """
        raise_violations(text_violation(f"queries[{at}]", query) for at, query in enumerate(queries))
        return self._batch_match(queries, _to_proto(options))

    def ingest(self, documents: Iterable[DocumentLike]) -> Iterator[DocumentResult]:
        """Create or replace documents; yields one result for each document.

        Nothing is sent until you iterate. Only a few batches are in memory at a time. While the queue is full
        or the matcher is unavailable, the client retries for up to two minutes without progress. An accepted
        document is durable and will be searchable soon. Repeating a call is safe: unchanged documents are not
        written again.

        A bad document does not affect the others: its result has the error. Results come batch by batch, a
        bad document before its neighbours; `position` identifies the document.

        Args:
            documents: `Document` objects, or dicts with "id", "text", and optional "attributes", "version".
        """
        stream = IngestStream(
            self._matcher,
            self._matcher_stub,
            timeout_seconds=self._bulk_timeout_seconds,
            stall_timeout_seconds=_STALL_TIMEOUT_SECONDS,
        )
        return stream.run(documents)

    def ingest_all(self, documents: Iterable[DocumentLike], *, wait: bool = False) -> IngestSummary:
        """As `ingest`, but returns the counts and the first hundred rejected documents at the end.

        Args:
            documents: as for `ingest`.
            wait: return only when the documents are searchable.
        """
        counts = dict.fromkeys(IngestOutcome, 0)
        rejections: list[DocumentResult] = []
        for result in self.ingest(documents):
            counts[result.outcome] += 1
            if result.outcome is IngestOutcome.REJECTED and len(rejections) < _MAX_REJECTIONS:
                rejections.append(result)
        if wait:
            self.wait_until_searchable()
        return IngestSummary(
            accepted=counts[IngestOutcome.ACCEPTED],
            unchanged=counts[IngestOutcome.UNCHANGED],
            rejected=counts[IngestOutcome.REJECTED],
            rejections=tuple(rejections),
        )

    def wait_until_searchable(self, on_status: Callable[[IngestStatus], None] | None = None) -> None:
        """Wait until all documents accepted before this call are searchable or have failed.

        Documents that others add in the meantime do not prolong it.

        Args:
            on_status: called with each status while waiting, to show progress.

        Raises:
            DeadlinePassed: the size of the queue did not change for two minutes.
        """
        started = moved_at = time.monotonic()
        last_count = -1

        def are_waiting() -> bool:
            nonlocal moved_at, last_count
            asked = time.monotonic()
            status = self.ingest_status()
            if on_status is not None:
                on_status(status)
            if status.queued_count == 0 or status.oldest_queued_seconds < asked - started:
                return False
            if status.queued_count != last_count:
                last_count, moved_at = status.queued_count, asked
            elif asked - moved_at > _STALL_TIMEOUT_SECONDS:
                raise DeadlinePassed(
                    f"{last_count:,} documents are queued, and their number has not changed for "
                    f"{_STALL_TIMEOUT_SECONDS:g} seconds; are the workers running?"
                )
            return True

        wait = wait_exponential(_FIRST_POLL_SECONDS, max=_LAST_POLL_SECONDS)
        Retrying(retry=retry_if_result(bool), wait=wait)(are_waiting)

    def get_document(self, document_id: str) -> Document:
        """A stored document.

        Raises:
            DocumentNotFound: it does not exist, or is still queued.
        """
        raise_violations([id_violation("id", document_id)])
        request = matcher_pb.GetDocumentRequest(id=document_id)
        response = self._matcher.call(self._matcher_stub.GetDocument, request, self._timeout_seconds)
        return from_proto(response.document)

    def delete(self, ids: str | Sequence[str], *, version: int | None = None) -> int:
        """Delete documents; returns how many were stored.

        Older writes that are still queued do not bring them back. Deleting an unknown id succeeds.

        Args:
            ids: any number of ids, or a single one.
            version: delete only what is not newer than this; None means now.
        """
        ids = _several(ids)
        violations = [id_violation(f"ids[{position}]", one) for position, one in enumerate(ids)]
        raise_violations([*violations, _version_violation(version)])
        return sum(
            self._delete(matcher_pb.DeleteDocumentsRequest(ids=chunk, version=version))
            for _, chunk in chunks(ids, utf8_bytes, _IDS_PER_CALL)
        )

    def delete_where(self, where: Filter, *, version: int | None = None) -> int:
        """Delete the documents whose attributes match; returns how many were stored."""
        raise_violations([_version_violation(version)])
        condition = filter_to_proto(where, "where")
        return self._delete(matcher_pb.DeleteDocumentsRequest(filter=condition, version=version))

    def ingest_status(self, document_id: str = "") -> IngestStatus:
        """The size of the queue, and the state of one document if its id is given."""
        if document_id:
            raise_violations([id_violation("document_id", document_id)])
        request = matcher_pb.GetIngestStatusRequest(document_id=document_id)
        response = self._matcher.call(self._matcher_stub.GetIngestStatus, request, self._timeout_seconds)
        return ingest_status_from_proto(response)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        role: Role = Role.DOCUMENT,
        dimension: int | None = None,
        model: str = "",
    ) -> EncodeResult:
        """Embed any number of texts: (count, dimension) float32 with rows of length 1.

        Args:
            texts: a sequence, or a single text.
            role: what the texts are used for.
            dimension: cuts the embeddings of a Matryoshka model to this many components.
            model: name or model id of a loaded bi-encoder; empty means the default one.
        """
        texts = _several(texts)
        self._check_texts("texts", [(text,) for text in texts])

        def request(chunk: list[str]) -> encoder_pb.EncodeRequest:
            return encoder_pb.EncodeRequest(texts=chunk, role=ROLES[role], dimension=dimension, model=model)

        return encode_result(self._call_encoder(self._encoder_stub.Encode, texts, utf8_bytes, request))

    def score(
        self,
        query: str,
        texts: str | Sequence[str],
        *,
        scorer: Scorer = Scorer.CROSS_ENCODER,
        model: str = "",
    ) -> ScoreResult:
        """Score how similar in meaning the query is to each text, 0 to 1.

        Args:
            query: the text that each of the others is compared with.
            texts: a sequence of any length, or a single text.
            scorer: which kind of model scores.
            model: name or model id of a loaded model of that kind; empty means the default one.
        """
        texts = _several(texts)
        raise_violations([text_violation("query", query)])
        self._check_texts("texts", [(text,) for text in texts])

        def request(chunk: list[str]) -> encoder_pb.ScoreRequest:
            return encoder_pb.ScoreRequest(query=query, texts=chunk, scorer=SCORERS[scorer], model=model)

        return score_result(self._call_encoder(self._encoder_stub.Score, texts, utf8_bytes, request))

    def score_pairs(
        self, pairs: Sequence[TextPair], *, scorer: Scorer = Scorer.CROSS_ENCODER, model: str = ""
    ) -> ScoreResult:
        """Score how similar the two texts of each pair are; otherwise as `score`."""
        self._check_texts("pairs", pairs)

        def request(chunk: list[TextPair]) -> encoder_pb.ScoreRequest:
            messages = [encoder_pb.TextPair(first=first, second=second) for first, second in chunk]
            return encoder_pb.ScoreRequest(pairs=messages, scorer=SCORERS[scorer], model=model)

        return score_result(self._call_encoder(self._encoder_stub.Score, pairs, _pair_bytes, request))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that the encoder has loaded."""
        return tuple(model_info(message) for message in self._get_models().models)

    def health(self) -> tuple[ServerHealth, ...]:
        """The health of both servers, by the gRPC health protocol. Does not raise."""
        return tuple(_health(server) for server in (self._encoder, self._matcher))

    def _batch_match(
        self, queries: Sequence[str], options: matcher_pb.MatchOptions
    ) -> Iterator[BatchMatchResult]:
        for start, chunk in chunks(queries, utf8_bytes, _QUERIES_PER_CALL):
            request = matcher_pb.BatchMatchRequest(queries=chunk, options=options)
            call = self._matcher_stub.BatchMatch(
                request, timeout=self._bulk_timeout_seconds, metadata=self._matcher.metadata
            )
            try:
                with self._matcher.translated_errors(self._bulk_timeout_seconds):
                    for response in call:
                        yield batch_result_from_proto(start, chunk, response)
            finally:
                call.cancel()  # type: ignore[no-untyped-call]

    def _delete(self, request: matcher_pb.DeleteDocumentsRequest) -> int:
        method = self._matcher_stub.DeleteDocuments
        return self._matcher.call(method, request, self._bulk_timeout_seconds).deleted_count

    def _call_encoder(
        self,
        method: UnaryMethod[EncoderRequest, Response],
        items: Sequence[Item],
        size_bytes: Callable[[Item], int],
        to_request: Callable[[list[Item]], EncoderRequest],
    ) -> list[Response]:
        """Call the method with each chunk of the items, in the bulk lane if there are many."""
        is_bulk = len(items) > _MAX_INTERACTIVE_TEXTS

        def requests() -> Iterator[tuple[int, EncoderRequest]]:
            for start, chunk in chunks(items, size_bytes, self._limits.max_texts):
                request = to_request(chunk)
                request.priority = priority(is_bulk=is_bulk)
                yield start, request

        timeout_seconds = self._bulk_timeout_seconds if is_bulk else self._timeout_seconds
        return list(self._encoder.call_each(method, requests(), timeout_seconds))

    @cached_property
    def _limits(self) -> encoder_pb.Limits:
        return self._get_models().limits

    def _get_models(self) -> encoder_pb.GetModelsResponse:
        request = encoder_pb.GetModelsRequest()
        return self._encoder.call(self._encoder_stub.GetModels, request, self._timeout_seconds)

    def _check_texts(self, field: str, items: Sequence[tuple[str, ...]]) -> None:
        """Check all texts before anything is sent."""
        if not items:
            raise InvalidInput.of_field(field, "is empty; at least one item is needed")
        max_bytes = self._limits.max_text_bytes
        raise_violations(
            text_violation(f"{field}[{position}]", text, max_bytes)
            for position, texts in enumerate(items)
            for text in texts
        )


def _to_proto(keywords: MatchKeywords) -> matcher_pb.MatchOptions:
    given: dict[str, Any] = dict(keywords)
    given.setdefault("candidate_count", default_candidate_count(given.get("top_k", MatchOptions.top_k)))
    rerank = given.get("rerank")
    if rerank is None or isinstance(rerank, bool):
        given["rerank"] = _RERANK_OF_KEYWORD[rerank]
    return options_to_proto(MatchOptions(**given))


def _version_violation(version: int | None) -> Violation | None:
    return None if version is None else version_violation("version", version)


def _pair_bytes(pair: TextPair) -> int:
    return utf8_bytes(pair[0]) + utf8_bytes(pair[1])


def _several(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _health(server: Connection) -> ServerHealth:
    stub = health_pb2_grpc.HealthStub(server.channel)
    try:
        response = stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_SECONDS)
    except grpc.RpcError:
        return ServerHealth(server.name, server.address, HealthState.UNREACHABLE)
    is_serving = response.status == health_pb2.HealthCheckResponse.SERVING
    state = HealthState.SERVING if is_serving else HealthState.NOT_SERVING
    return ServerHealth(server.name, server.address, state)
