"""Writes, deletes, redelivery, replays and crashes in any order: the index is always what the rules say.

Hypothesis makes up the orders; the worker's `index_documents`, the matcher's deletes, Redis and the engine
are the real ones. A model applies the same events by the rules of versions and tombstones alone.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from qdrant_client import models
from redis.asyncio import Redis

from tests.integration.ingest.document_calls import DocumentCalls
from tests.integration.ingest.indexing import TOMBSTONE_SECONDS, Crash, CrashingClient, IngestState
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from tests.integration.ingest.version_model import BAD_TEXT, CrashMoment, Model, Moment, Race, raced_document
from tests.support.collections import CONFIG, client_of
from tests.support.queue import take_queued
from textmatch.documents import Document
from textmatch.errors import InvalidInput, Violation
from textmatch.index.index import Index
from textmatch.index.schema import points_of
from textmatch.queue.producer import Submission
from textmatch.queue.tombstones import Tombstones
from textmatch.v1 import error_reason_pb2
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import to_proto
from workers.indexer import IndexerDependencies, index_documents

NAMES = st.sampled_from(["a", "b"])
VERSIONS = st.integers(1, 6)
# Of about 1, 3, 9 and 40 passages.
LONG_TEXTS = [
    f"{count} sentences: " + "This sentence has eight words and nothing else. " * count
    for count in (9, 30, 130)
]
TEXTS = st.sampled_from(["one", "two", BAD_TEXT, *LONG_TEXTS])
RACED_TEXTS = st.sampled_from(["one", "two", BAD_TEXT, LONG_TEXTS[0]])
MAX_TOKENS = 40
EXAMPLES = settings(
    max_examples=80,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


RunRace = Callable[[Moment], Awaitable[None]]
CRASHES = st.none() | st.sampled_from(CrashMoment)
RACES = st.none() | st.builds(Race, st.sampled_from(Moment), VERSIONS, st.none() | RACED_TEXTS)


class RacedTombstones:
    """Tombstones that are read before and after the write: the moments for a race, and for a crash."""

    def __init__(
        self, real: Tombstones, run_race: Callable[[Moment], Awaitable[None]], crash: CrashMoment | None
    ) -> None:
        self._real = real
        self._run_race = run_race
        self._crash = crash
        self._is_read = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def covering(self, documents: Collection[Document]) -> dict[str, int]:
        if not self._is_read:
            self._is_read = True
            found = await self._real.covering(documents)
            await self._run_race(Moment.BEFORE_READING)
            return found
        await self._run_race(Moment.AFTER_WRITE)
        if self._crash is CrashMoment.AFTER_WRITE:
            raise Crash
        return await self._real.covering(documents)


class RacedIndex:
    """The index, with something that comes just before a write, and a crash just before its commit."""

    def __init__(self, real: Index, run_race: RunRace, crash: CrashMoment | None) -> None:
        self._real = real
        self._run_race = run_race
        self._crash = crash

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def upsert(self, *arguments: Any, **options: Any) -> None:
        await self._run_race(Moment.BETWEEN_READING_AND_WRITE)
        index: Any = self._real
        if self._crash is CrashMoment.BEFORE_COMMIT:
            index = copy.copy(index)
            index._client = CrashingClient(client_of(self._real), write_number=bool(options["passages"]))
        await index.upsert(*arguments, **options)


@dataclass(frozen=True)
class Parts:
    """The real parts, all of one event loop."""

    loop: asyncio.AbstractEventLoop
    deps: IndexerDependencies
    handler: DocumentCalls
    state: IngestState
    encoder: ScriptedEncoder
    redis: Redis

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run in the loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60)

    async def ingest(self, document: Document) -> bool:
        """As a client of the matcher does; whether it is accepted."""

        async def requests() -> AsyncIterator[pb.IngestDocumentsRequest]:
            yield pb.IngestDocumentsRequest(documents=[to_proto(document)])

        [response] = [one async for one in self.handler.ingest(requests())]
        return response.results[0].outcome == pb.INGEST_OUTCOME_ACCEPTED

    async def delete(self, document_id: str, version: int) -> None:
        """As a client of the matcher does."""
        await self.handler.delete(pb.DeleteDocumentsRequest(ids=[document_id], version=version))


class VersionRules(RuleBasedStateMachine):
    """Documents of one run have ids of their own: the index is never emptied."""

    messages = Bundle("messages")
    numbers = itertools.count()

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.model = Model()
        self.unacknowledged: list[Document] = []
        self.run_number = next(self.numbers)

    @initialize()
    def refuse_bad_text(self) -> None:
        self.set_refusing(is_refusing=True)

    @rule(is_refusing=st.booleans())
    def set_refusing(self, is_refusing: bool) -> None:
        self.model.refuses_bad_text = is_refusing
        self.parts.encoder.check = refuse_bad_text if is_refusing else lambda texts: None

    @rule(
        target=messages,
        name=NAMES,
        version=VERSIONS,
        text=TEXTS,
        race=RACES,
        crash=CRASHES,
    )
    def write(
        self, name: str, version: int, text: str, race: Race | None, crash: CrashMoment | None
    ) -> Document:
        document = Document(self.document_id(name), text, {"version": version}, version)
        [answer] = self.parts.run(self.parts.state.producer.enqueue(CONFIG, [document]))
        if answer > 0:
            self.model.accept(document)
        self.deliver_queued(race, crash)
        return document

    @rule(document=messages, race=RACES, crash=CRASHES)
    def redeliver(self, document: Document, race: Race | None, crash: CrashMoment | None) -> None:
        self.deliver(document, race, crash)

    @rule(name=NAMES, version=VERSIONS)
    def delete(self, name: str, version: int) -> None:
        self.parts.run(self.parts.delete(self.document_id(name), version))
        self.model.delete(self.document_id(name), version)

    @rule(target=messages, name=NAMES, version=VERSIONS, is_late=st.booleans())
    def queue_delete(self, name: str, version: int, is_late: bool) -> Document:
        deletion = Document.deletion(self.document_id(name), version)
        submission = Submission({}, tombstone_seconds=TOMBSTONE_SECONDS)
        self.parts.run(self.parts.state.producer.enqueue(CONFIG, [deletion], submission))
        self.model.accept(deletion)
        if is_late:
            self.unacknowledged += self.parts.run(take_queued(self.parts.redis))
        else:
            self.deliver_queued(race=None, crash=None)
        return deletion

    @rule(
        target=messages,
        name=NAMES,
        expected=st.integers(0, 6),
        above=st.integers(1, 3),
        text=st.none() | TEXTS,
        crash=CRASHES,
    )
    def expect_version(
        self, name: str, expected: int, above: int, text: str | None, crash: CrashMoment | None
    ) -> Document:
        """A delete, if there is no text."""
        one, version = self.document_id(name), expected + above
        document = Document(one, text or "", {"version": version} if text else {}, version, deleted=not text)
        is_accepted = self.parts.run(self.parts.ingest(replace(document, expected_version=expected)))
        is_covered = text is not None and version <= self.model.tombstones.get(one, 0)
        assert is_accepted == (self.model.version(one) == expected and not is_covered)
        if is_accepted:
            self.model.accept(document)
        self.deliver_queued(None, crash)
        return document

    @rule(name=NAMES)
    def replay_dead_letter(self, name: str) -> None:
        replayed = self.model.letters.pop(self.document_id(name), None)
        letters = self.parts.state.dead_letters
        count = self.parts.run(letters.replay([self.document_id(name)], self.parts.state.producer, CONFIG))
        assert count == (replayed is not None)
        if replayed is not None:
            self.model.accept(replayed)
        self.deliver_queued(race=None, crash=None)

    @invariant()
    def the_index_is_what_the_rules_say(self) -> None:
        ids = [self.document_id(name) for name in ("a", "b")]
        found = self.parts.run(self.parts.deps.collection.index.fetch(ids))
        assert {one.document.id: one.document for one in found.values()} == self.model.stored
        assert {one: self.letter(one) for one in ids if self.letter(one)} == self.model.letters

    def teardown(self) -> None:
        """What no worker has acknowledged comes again; then nothing waits and no tombstone is ignored."""
        for document in self.unacknowledged:
            self.deliver(document, race=None, crash=None)
        self.the_index_is_what_the_rules_say()
        for document in self.model.stored.values():
            assert document.version > self.model.tombstones.get(document.id, 0)
        ids = [self.document_id(name) for name in ("a", "b")]
        assert self.parts.run(self.parts.state.pending.versions(ids)) == {}
        self.parts.run(self.no_passage_is_left(ids))

    async def no_passage_is_left(self, ids: Sequence[str]) -> None:
        """The further passages are those of the stored documents, and nothing of their texts is missing."""
        index = self.parts.deps.collection.index
        if not (model_id := await index.model_in_use()):
            return
        records, _ = await client_of(index).scroll(
            index.collections.config.physical(model_id),
            models.Filter(must=[points_of(ids)]),
            limit=1_000,
            with_payload=True,
        )
        passages: dict[str, list[Any]] = {}
        for record in records:
            payload = record.payload or {}
            passages.setdefault(payload["id"], []).append(payload)
        assert passages.keys() == self.model.stored.keys()
        for one, document in self.model.stored.items():
            assert {payload["version"] for payload in passages[one]} == {document.version}
            texts = sorted(passages[one], key=lambda payload: payload.get("passage", {}).get("number", 0))
            assert " ".join(payload["text"] for payload in texts).split() == document.text.split()

    def deliver_queued(self, race: Race | None, crash: CrashMoment | None) -> None:
        for document in self.parts.run(take_queued(self.parts.redis)):
            self.deliver(document, race, crash)

    def deliver(self, document: Document, race: Race | None, crash: CrashMoment | None) -> None:
        self.model.deliver(document, race, crash)
        self.parts.run(self.work_on(document, race, crash))

    async def work_on(self, document: Document, race: Race | None, crash: CrashMoment | None) -> None:
        async def run_race(moment: Moment) -> None:
            if race is None or race.moment is not moment:
                return
            if race.text is None:
                await self.parts.delete(document.id, race.version)
            else:
                raced = raced_document(document.id, race.version, race.text)
                await index_documents([raced], self.parts.deps)

        deps = self.parts.deps
        tombstones = RacedTombstones(deps.collection.tombstones, run_race, crash)
        index = RacedIndex(deps.collection.index, run_race, crash)
        try:
            await index_documents(
                [document],
                replace(deps, collection=replace(deps.collection, tombstones=tombstones, index=index)),
            )
        except Crash:
            self.unacknowledged.append(document)

    def document_id(self, name: str) -> str:
        return f"{self.run_number}-{name}"

    def letter(self, document_id: str) -> Document | None:
        letter = self.parts.run(self.parts.state.dead_letters.get(document_id))
        return letter.document if letter else None


def refuse_bad_text(texts: Sequence[str]) -> None:
    """As the encoder refuses texts that its model fails on."""
    failed = error_reason_pb2.ERROR_REASON_TEXT_FAILED
    violations = [
        Violation(f"texts[{position}]", failed, "makes the model fail")
        for position, text in enumerate(texts)
        if text == BAD_TEXT
    ]
    if violations:
        raise InvalidInput(violations)


async def test_the_index_is_what_the_rules_of_versions_say_after_any_events(
    deps: IndexerDependencies,
    handler: DocumentCalls,
    state: IngestState,
    encoder: ScriptedEncoder,
    redis: Redis,
):
    encoder.max_tokens = MAX_TOKENS
    parts = Parts(asyncio.get_running_loop(), deps, handler, state, encoder, redis)
    await asyncio.to_thread(run_state_machine_as_test, lambda: VersionRules(parts), settings=EXAMPLES)
