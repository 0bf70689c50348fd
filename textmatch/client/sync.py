"""The synchronous client of the matcher and the encoder. No protobuf in its arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from textmatch.client.connection import Connection
from textmatch.client.encoder_api import EncoderApi, TextPair
from textmatch.client.matcher_api import MatcherApi
from textmatch.documents import Document
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
    MatchResult,
    ModelInfo,
    Role,
    Scorer,
    ScoreResult,
    ServerHealth,
)
from textmatch.wire.documents import DocumentLike

DEFAULT_MATCHER = "127.0.0.1:50052"
DEFAULT_ENCODER = "127.0.0.1:50051"
_MAX_REJECTIONS = 100
_HEALTH_TIMEOUT_SECONDS = 2.0


class TextMatchClient:
    """Talks to a matcher and an encoder.

        with TextMatchClient() as client:
            client.ingest_all([{"id": "rm", "text": "delete a folder and everything in it"}], wait=True)
            for match in client.match("remove a directory tree", top_k=3):
                print(match.score, match.document.id, match.document.text)

    Connects with the first call, and reconnects when a server was away. Threads may share a client.
    Every failure is a `textmatch.errors.TextMatchError`:

    * `InvalidInput` names everything that is wrong with the arguments;
    * `ServerUnreachable`, a `DependencyUnavailable`: no server answers at the address;
    * `DeadlinePassed`: the answer took longer than the timeout;
    * `Unauthenticated` and `PermissionDenied`: the API key is not valid or lacks a scope;
    * `Overloaded`: the server has too much to do; come back after `retry_delay_seconds`.

    Args:
        matcher: a gRPC target: `host:port`, or `dns:///name:port` for all replicas behind a name.
        encoder: the same. Each server is needed only for the methods that use it.
        timeout_seconds: of one interactive call.
        bulk_timeout_seconds: of one call of bulk work: a batch of documents, a hundred queries of
            `batch_match`, or a part of more than 64 texts.
        api_key: for both servers; empty if they ask for none.
        tls: the CA to trust, and the certificate to show if one is asked for. None means plain text.
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
        matcher_server = Connection("matcher", matcher, api_key, tls)
        encoder_server = Connection("encoder", encoder, api_key, tls)
        self._matcher = MatcherApi(matcher_server, timeout_seconds, bulk_timeout_seconds)
        self._encoder = EncoderApi(encoder_server, timeout_seconds, bulk_timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; running calls are cancelled."""
        self._matcher.server.close()
        self._encoder.server.close()

    def match(self, query: str, **options: Unpack[MatchKeywords]) -> MatchResult:
        """The stored documents that mean about the same as the query, the best first.

        Args:
            query: the text to look for.
            options: `top_k`, `where`, `min_score` and others; see `MatchOptions`.

        Raises:
            TypeError: an option does not exist.
        """
        return self._matcher.match(query, options)

    def batch_match(
        self, queries: Sequence[str], **options: Unpack[MatchKeywords]
    ) -> Iterator[BatchMatchResult]:
        """Match any number of queries, in the bulk lane. Options as for `match`.

        Results come as soon as they are ready, each with the position of its query. A query that fails comes
        with its error and does not stop the others.
        """
        return self._matcher.batch_match(queries, options)

    def ingest(self, documents: Iterable[DocumentLike]) -> Iterator[DocumentResult]:
        """Create or replace documents; yields one result for each document.

        Nothing is sent until you iterate. Only a few batches are in memory at a time. While the queue is full
        or the matcher is away, the client retries, for two minutes at most without progress. An accepted
        document is durable and will be searchable soon. Repeating a call is safe: unchanged documents are not
        written again.

        A bad document does not affect the others: its result has the error. Results come batch by batch, a
        bad document before its neighbours; `position` says which document it was.

        Args:
            documents: `Document` objects, or dicts with "id", "text" and, if wanted, "attributes", "version".
        """
        return self._matcher.ingest(documents)

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

        Args:
            on_status: called with each status while waiting, to show progress.

        Raises:
            DeadlinePassed: the queue did not move for two minutes.
        """
        self._matcher.wait_until_searchable(on_status)

    def get_document(self, document_id: str) -> Document:
        """A stored document.

        Raises:
            DocumentNotFound: it does not exist, or is still queued.
        """
        return self._matcher.get_document(document_id)

    def delete(self, ids: Sequence[str], *, version: int | None = None) -> int:
        """Delete documents; returns how many were stored.

        Older writes that are still queued do not bring them back. Deleting an unknown id succeeds.

        Args:
            ids: any number of ids.
            version: delete only what is not newer than this; None means now.
        """
        return self._matcher.delete([ids] if isinstance(ids, str) else ids, version)

    def delete_where(self, where: Filter, *, version: int | None = None) -> int:
        """Delete the documents whose attributes fit; returns how many were stored."""
        return self._matcher.delete_where(where, version)

    def ingest_status(self, document_id: str = "") -> IngestStatus:
        """The size of the queue, and the state of one document if its id is given."""
        return self._matcher.ingest_status(document_id)

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
        return self._encoder.encode(_several(texts), role, dimension, model)

    def score(
        self,
        query: str,
        texts: str | Sequence[str],
        *,
        scorer: Scorer = Scorer.CROSS_ENCODER,
        model: str = "",
    ) -> ScoreResult:
        """How similar in meaning the query is to each text, 0 to 1.

        Args:
            query: the text that each of the others is compared with.
            texts: a sequence of any length, or a single text.
            scorer: which kind of model scores.
            model: name or model id of a loaded model of that kind; empty means the default one.
        """
        return self._encoder.score(query, _several(texts), scorer, model)

    def score_pairs(
        self, pairs: Sequence[TextPair], *, scorer: Scorer = Scorer.CROSS_ENCODER, model: str = ""
    ) -> ScoreResult:
        """How similar the two texts of each pair are; the rest as for `score`."""
        return self._encoder.score_pairs(pairs, scorer, model)

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that the encoder has loaded."""
        return self._encoder.models()

    def health(self) -> tuple[ServerHealth, ...]:
        """The health of both servers, by the gRPC health protocol. Does not raise."""
        return tuple(_health(server) for server in (self._encoder.server, self._matcher.server))


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
