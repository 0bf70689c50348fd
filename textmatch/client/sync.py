"""The synchronous client of the matcher and the encoder. No protobuf in its arguments and results.

`asyncio.py` has the implementation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Self, Unpack

from textmatch.client.arguments import with_checked_options
from textmatch.client.asyncio import DEFAULT_ENCODER, DEFAULT_MATCHER, AsyncTextMatchClient
from textmatch.client.connection import BlockingConnection, run
from textmatch.client.encoder_methods import EncoderMethods
from textmatch.client.results import Results
from textmatch.collection_config import DEFAULT_COLLECTION, CollectionConfig
from textmatch.documents import Document
from textmatch.filters import Condition
from textmatch.runtime.tls import ClientTls
from textmatch.types import (
    BatchMatchResult,
    CollectionSummary,
    DocumentResult,
    DocumentStatus,
    DuplicateOptions,
    DuplicatePage,
    FoundDocuments,
    IngestStatus,
    IngestSummary,
    LetterInfo,
    MatchKeywords,
    MatchResult,
    ServerHealth,
)
from textmatch.wire.documents import DocumentLike


class _BlockingMethods(AsyncTextMatchClient):
    """The same methods over blocking connections: `run` executes them without an event loop."""

    _connection = BlockingConnection


@with_checked_options
class TextMatchClient(EncoderMethods):
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

    An option that does not exist is a TypeError, which names the nearest one that does.

    `timeout_seconds` of a method is the time limit of each call to the server; None means the client's. Long
    inputs take several calls.

    Args:
        matcher: a gRPC target: `host:port`, or `dns:///name:port` for all replicas behind a name.
        encoder: the same. Each server is needed only for the methods that use it.
        timeout_seconds: of one interactive call.
        bulk_timeout_seconds: of one call of bulk work: a batch of documents, a hundred queries of
            `batch_match`, or a part of more than 64 texts.
        api_key: for both servers; None reads TEXTMATCH_API_KEY; empty if they require none.
        tls: the CA to trust, and the client certificate if one is required. The files are read again when
            they change. None: not encrypted.
        collection: the name of the collection that the documents are in.

    Raises:
        InvalidInput: an argument is not valid, or a file of `tls` cannot be read.
    """

    _methods: _BlockingMethods

    def __init__(
        self,
        matcher: str = DEFAULT_MATCHER,
        encoder: str = DEFAULT_ENCODER,
        *,
        timeout_seconds: float = 10.0,
        bulk_timeout_seconds: float = 300.0,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        collection: str = DEFAULT_COLLECTION,
    ) -> None:
        self._methods = _BlockingMethods(
            matcher,
            encoder,
            timeout_seconds=timeout_seconds,
            bulk_timeout_seconds=bulk_timeout_seconds,
            api_key=api_key,
            tls=tls,
            collection=collection,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def using(
        self, *, collection: str | None = None, api_key: str | None = None, request_id: str | None = None
    ) -> Self:
        """This client for another collection or another caller, over the same connections.

            faq = client.using(collection="faq")

        None keeps what this client has. Closing one of them closes the connections of all.

        Args:
            request_id: for the servers' logs, ASCII. Empty: the servers choose one for each call.
        """
        methods = self._methods.using(collection=collection, api_key=api_key, request_id=request_id)
        other = copy.copy(self)
        vars(other).update(_methods=methods)
        return other

    def close(self) -> None:
        """Close the connections; running calls are cancelled."""
        run(self._methods.close())

    def match(
        self,
        query: str = "",
        *,
        document_id: str = "",
        timeout_seconds: float | None = None,
        **options: Unpack[MatchKeywords],
    ) -> MatchResult:
        """The stored documents that mean about the same as the query, the best first.

        Args:
            query: the text to look for.
            document_id: instead of a query: what is similar to this stored document, without the document.
            options: `top_k`, `where`, `min_score` and others; see `MatchOptions`. `where` is a `Filter`, a
                single condition, or a string: 'module = "os" and year > 2020'.

        Raises:
            DocumentNotFound: the document is not stored.
            AnswerIncomplete: the answer is degraded, and `require_complete` is set.
        """
        return run(
            self._methods.match(query, document_id=document_id, timeout_seconds=timeout_seconds, **options)
        )

    def batch_match(
        self,
        queries: Iterable[str],
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[MatchKeywords],
    ) -> Results[BatchMatchResult]:
        """Match any number of queries, in the bulk lane. Options as for `match`.

        Nothing is sent until you iterate. Results come in the order of the queries, each as soon as those
        before it are there. A query that fails comes with its error and does not stop the others. Queries
        that are refused for now, or not answered because the matcher is unavailable, are sent again, for up
        to two minutes without progress.

        Args:
            queries: any iterable; it is read as far as results are.
        """
        return Results(self._methods.batch_match(queries, timeout_seconds=timeout_seconds, **options))

    def find_duplicates(
        self,
        *,
        against: str = "",
        min_score: float = DuplicateOptions.min_score,
        neighbors: int = DuplicateOptions.neighbors,
        where: Condition | str | None = None,
        rerank: bool = True,
        omit_text: bool = False,
        resume_token: str = "",
        timeout_seconds: float | None = None,
    ) -> Results[DuplicatePage]:
        """Pairs of documents that mean the same, a page for each few documents. Each pair comes once.

            for page in client.find_duplicates(min_score=0.8):
                for pair in page:
                    print(pair.score, pair.first.id, pair.second.id)

        Nothing is sent until you iterate. Nothing is embedded: the stored embeddings are compared. Calls that
        are refused for now, or not answered, are repeated, for up to two minutes without progress.

        Args:
            against: another collection, whose documents those of the client's collection are compared with.
                "": with each other.
            min_score: leaves out pairs with a lower score, above 0 to 1.
            neighbors: how many nearest others a document is compared with, 1 to 100.
            where: as for `match`; both documents of a pair match.
            rerank: False: no pair scores of the cross-encoder.
            omit_text: leave the texts out.
            resume_token: of a page of an earlier search with the same options, to go on after it.

        Raises:
            CollectionsDiffer: different bi-encoders built the two collections.
        """
        pages = self._methods.find_duplicates(
            against=against,
            min_score=min_score,
            neighbors=neighbors,
            where=where,
            rerank=rerank,
            omit_text=omit_text,
            resume_token=resume_token,
            timeout_seconds=timeout_seconds,
        )
        return Results(pages)

    def ingest(
        self, documents: Iterable[DocumentLike], *, timeout_seconds: float | None = None
    ) -> Results[DocumentResult]:
        """Create or replace documents; yields one result for each document.

        Nothing is sent until you iterate. Only a few batches are in memory at a time. While the queue is full
        or the matcher is unavailable, the client retries for up to two minutes without progress. An accepted
        document is durable and will be searchable soon. Repeating a call is safe: unchanged documents are not
        written again. A retry never overwrites what others wrote in between.

        A bad document does not affect the others: its result has the error. Results come batch by batch, a
        bad document before its neighbours; `position` identifies the document.

        Args:
            documents: `Document` objects, or dicts with "id", "text", and optional "attributes", "version".
                Deletes among them are `Document.deletion(id, version)`, or dicts with "id", "deleted": true
                and optional "version". They are accepted while Qdrant is down, and applied later. Both may
                have an "expected_version": they are rejected (VersionMismatch) if the document does not have
                it then; 0: if the document exists.
        """
        return Results(self._methods.ingest(documents, timeout_seconds=timeout_seconds))

    def ingest_all(
        self,
        documents: Iterable[DocumentLike],
        *,
        wait: bool = False,
        timeout_seconds: float | None = None,
    ) -> IngestSummary:
        """As `ingest`, but returns the counts and the first hundred rejected documents at the end.

        Args:
            documents: as for `ingest`.
            wait: return only when the documents are searchable.
        """
        return run(self._methods.ingest_all(documents, wait=wait, timeout_seconds=timeout_seconds))

    def wait_until_searchable(
        self,
        on_status: Callable[[IngestStatus], None] | None = None,
        *,
        on_problem: Callable[[str], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """Wait until all documents accepted before this call are searchable or have failed.

        Documents that others add in the meantime do not prolong it. Waiting goes on while a store does not
        answer, the matcher restarts, or workers wait for an operator.

        Args:
            on_status: called with each status while waiting, to show progress.
            on_problem: called with the reason when the queue cannot be read, or waits for something.
            timeout_seconds: how long to wait in all; None: as long as the queue moves or has a known problem.

        Raises:
            DeadlinePassed: that time is over, or the size of the queue did not change for two minutes.
            TextMatchError: the queue could not be read for two minutes.
        """
        waiting = self._methods.wait_until_searchable(
            on_status, on_problem=on_problem, timeout_seconds=timeout_seconds
        )
        run(waiting)

    def get_document(self, document_id: str, *, timeout_seconds: float | None = None) -> Document:
        """A stored document.

        Raises:
            DocumentNotFound: it does not exist, or is still queued.
        """
        return run(self._methods.get_document(document_id, timeout_seconds=timeout_seconds))

    def get_documents(
        self, ids: str | Iterable[str], *, timeout_seconds: float | None = None
    ) -> FoundDocuments:
        """Stored documents in the order of the ids, and the ids of those that are not stored.

        Args:
            ids: any number of ids, or a single one.
        """
        return run(self._methods.get_documents(ids, timeout_seconds=timeout_seconds))

    def list_documents(
        self,
        where: Condition | str | None = None,
        *,
        after: str = "",
        limit: int | None = None,
        omit_text: bool = False,
        omit_attributes: bool = False,
        timeout_seconds: float | None = None,
    ) -> Results[Document]:
        """Stored documents, in an order that never changes: that of a hash of their ids.

        Nothing is sent until you iterate. Pages are read as far as you do. Every document that is stored the
        whole time comes once.

        Args:
            where: as for `match`.
            after: the id of a document, stored or not; only those after it come. Continues a list.
            limit: at most so many documents; None: all.
            omit_text: leave the text out.
            omit_attributes: leave the attributes out.
        """
        return Results(
            self._methods.list_documents(
                where,
                after=after,
                limit=limit,
                omit_text=omit_text,
                omit_attributes=omit_attributes,
                timeout_seconds=timeout_seconds,
            )
        )

    def count_documents(
        self, where: Condition | str | None = None, *, timeout_seconds: float | None = None
    ) -> int:
        """How many stored documents match a filter, as for `match`; None: how many there are."""
        return run(self._methods.count_documents(where, timeout_seconds=timeout_seconds))

    def delete(
        self,
        ids: str | Iterable[str],
        *,
        version: int | None = None,
        dry_run: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """Delete documents; returns how many were stored.

        Older writes that are still queued do not bring them back. Deleting an unknown id succeeds.

        Args:
            ids: any number of ids, or a single one.
            version: delete only what is not newer than this; None means now.
            dry_run: delete nothing, only count.
        """
        return run(
            self._methods.delete(ids, version=version, dry_run=dry_run, timeout_seconds=timeout_seconds)
        )

    def delete_where(
        self,
        where: Condition | str,
        *,
        version: int | None = None,
        dry_run: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """Delete the documents that match a filter; returns how many were stored.

        Args:
            where: as for `match`; it must not be empty.
            version: as for `delete`.
            dry_run: as for `delete`.
        """
        return run(
            self._methods.delete_where(
                where, version=version, dry_run=dry_run, timeout_seconds=timeout_seconds
            )
        )

    def ingest_status(
        self, document_id: str = "", *, collection: str = "", timeout_seconds: float | None = None
    ) -> IngestStatus:
        """The size of the queue, and the state of one document if its id is given.

        Args:
            collection: another one than that of the client.
        """
        return run(
            self._methods.ingest_status(document_id, collection=collection, timeout_seconds=timeout_seconds)
        )

    def document_states(
        self, ids: str | Iterable[str], *, timeout_seconds: float | None = None
    ) -> tuple[DocumentStatus, ...]:
        """What became of documents, in the order of the ids.

        Args:
            ids: any number of ids, or a single one.
        """
        return run(self._methods.document_states(ids, timeout_seconds=timeout_seconds))

    def list_dead_letters(
        self,
        *,
        limit: int | None = None,
        unreadable: bool = False,
        timeout_seconds: float | None = None,
    ) -> Results[LetterInfo]:
        """Documents that could not be indexed, the oldest failure first. Nothing is sent until you iterate.

        Args:
            limit: at most so many; None: all.
            unreadable: instead, the messages in the queue that could not be read. They belong to no
                collection; their list needs the scope admin.
        """
        return Results(
            self._methods.list_dead_letters(
                limit=limit, unreadable=unreadable, timeout_seconds=timeout_seconds
            )
        )

    def replay_dead_letters(
        self, ids: str | Iterable[str], *, unreadable: bool = False, timeout_seconds: float | None = None
    ) -> int:
        """Queue dead letters again, after the cause is fixed; returns how many of them there were."""
        return run(
            self._methods.replay_dead_letters(ids, unreadable=unreadable, timeout_seconds=timeout_seconds)
        )

    def drop_dead_letters(
        self, ids: str | Iterable[str], *, unreadable: bool = False, timeout_seconds: float | None = None
    ) -> int:
        """Delete dead letters for good; returns how many of them there were."""
        return run(
            self._methods.drop_dead_letters(ids, unreadable=unreadable, timeout_seconds=timeout_seconds)
        )

    def create_collection(
        self, settings: CollectionConfig, *, timeout_seconds: float | None = None
    ) -> CollectionSummary:
        """Make a collection. Making one that exists with the same settings succeeds.

        Raises:
            CollectionExists: it exists with other settings.
            ModelNotFound: the encoder does not serve one of its models.
            CollectionNotOwned: another installation has made one of this name.
        """
        return run(self._methods.create_collection(settings, timeout_seconds=timeout_seconds))

    def get_collection(self, name: str, *, timeout_seconds: float | None = None) -> CollectionSummary:
        """A collection with its size.

        Raises:
            CollectionNotFound: there is none of this name.
        """
        return run(self._methods.get_collection(name, timeout_seconds=timeout_seconds))

    def list_collections(self, *, timeout_seconds: float | None = None) -> list[CollectionSummary]:
        """All collections that the API key may use, by name."""
        return run(self._methods.list_collections(timeout_seconds=timeout_seconds))

    def delete_collection(self, name: str, *, timeout_seconds: float | None = None) -> None:
        """Delete a collection with all its documents, queued ones too."""
        run(self._methods.delete_collection(name, timeout_seconds=timeout_seconds))

    def adopt_collection(self, name: str, *, timeout_seconds: float | None = None) -> CollectionSummary:
        """Take over a collection that another installation made in the same Qdrant."""
        return run(self._methods.adopt_collection(name, timeout_seconds=timeout_seconds))

    def health(self, *, timeout_seconds: float | None = None) -> tuple[ServerHealth, ...]:
        """The health of both servers, by the gRPC health protocol. Does not raise if one is unreachable."""
        return run(self._methods.health(timeout_seconds=timeout_seconds))
