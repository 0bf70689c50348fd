"""Collections of two installations with equal ids never see anything of each other, whatever is done to them.

Hypothesis makes up the orders of writes, deletes, changes of the model and new creations. Matcher, worker,
Redis, the engine and gRPC are the real ones. A model of each collection applies its own events only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.integration.collections.conftest import FIRST_MODEL, SECOND_MODEL
from tests.integration.collections.installation import Installation
from tests.integration.ingest.scripted_encoder import ScriptedEncoder, embedding_of
from tests.integration.ingest.test_version_rules import refuse_bad_text
from tests.integration.ingest.version_model import BAD_TEXT, Model
from tests.integration.reindex.test_concurrency import NoProgress
from textmatch.cli.reindex import Reindexing, ReindexOptions
from textmatch.documents import Document
from textmatch.reindex import steps
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import from_proto, to_proto

IDS = ("a", "b", "文档")
COLOURS = ("red", "blue")
# The collection of each installation, and the model and the BM25 index that it is made with.
PLACES = {
    ("alpha", "one"): (FIRST_MODEL, True),
    ("alpha", "two"): (SECOND_MODEL, False),
    ("beta", "three"): (FIRST_MODEL, True),
}
_PLACES = st.sampled_from(sorted(PLACES))
_IDS = st.sampled_from(IDS)
_COLOURS = st.sampled_from(COLOURS)
_VERSIONS = st.integers(1, 6)
_WRITES = st.lists(
    st.tuples(_IDS, _VERSIONS, st.sampled_from(["x", "y", BAD_TEXT]), _COLOURS), min_size=1, max_size=4
)
EXAMPLES = settings(
    max_examples=12,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
OPTIONS = ReindexOptions(
    model="",
    switch=True,
    queries=None,
    sample=2,
    top_k=3,
    min_overlap=0.0,
    allow_refused=True,
    max_documents_per_second=None,
)


@dataclass
class CollectionModel(Model):
    """The rules of one creation of a collection, with deletes by a filter and the queue.

    Attributes:
        queue: documents, and the deletes by a filter that came after each of them.
    """

    model_id: str = ""
    queue: list[tuple[Document, list[tuple[str, int]]]] = field(default_factory=list)

    def delete_where(self, colour: str, version: int) -> None:
        """What is stored goes now, what is queued when it is written."""
        for _, filters in self.queue:
            filters.append((colour, version))
        self._apply(colour, version, IDS)

    def work(self) -> None:
        """Deliver all that is queued."""
        for document, filters in self.queue:
            self.deliver(document, None)
            for colour, version in filters:
                if version >= document.version:
                    self._apply(colour, version, (document.id,))
        self.queue.clear()

    def _apply(self, colour: str, version: int, ids: tuple[str, ...]) -> None:
        for document_id in ids:
            known = self.stored.get(document_id)
            if known and known.version <= version and known.attributes["colour"] == colour:
                self.delete(document_id, known.version)

    def state(self, document_id: str) -> pb.DocumentState.ValueType:
        """Of a document when nothing is queued."""
        if document_id in self.letters:
            return pb.DOCUMENT_STATE_FAILED
        if document_id in self.stored:
            return pb.DOCUMENT_STATE_INDEXED
        return pb.DOCUMENT_STATE_DELETED if document_id in self.tombstones else pb.DOCUMENT_STATE_UNKNOWN


@dataclass(frozen=True)
class World:
    """The real parts, all of one event loop."""

    loop: asyncio.AbstractEventLoop
    installations: dict[str, Installation]
    encoder: ScriptedEncoder

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run in the loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=120)


class Isolation(RuleBasedStateMachine):
    """Every place is a collection; a new creation begins with nothing."""

    creations = itertools.count()

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.models: dict[tuple[str, str], CollectionModel] = {}
        self.creation: dict[tuple[str, str], int] = {}

    @initialize()
    def begin(self) -> None:
        self.world.encoder.check = refuse_bad_text
        for place in PLACES:
            self.create(place)

    @rule(place=_PLACES, writes=_WRITES)
    def write(self, place: tuple[str, str], writes: list[tuple[str, int, str, str]]) -> None:
        for document_id, version, word, colour in writes:
            # The text says where it belongs.
            text = BAD_TEXT if word == BAD_TEXT else f"{word} of {place[1]} {self.creation[place]}"
            document = Document(document_id, text, {"colour": colour}, version)
            self.run(place, lambda on, one=document: on.ingest(place[1], to_proto(one)))
            self.models[place].queue.append((document, []))

    @rule(place=_PLACES, document_id=_IDS, version=_VERSIONS)
    def delete(self, place: tuple[str, str], document_id: str, version: int) -> None:
        request = pb.DeleteDocumentsRequest(ids=[document_id], version=version, collection=place[1])
        self.run(place, lambda on: on.call(on.matcher.DeleteDocuments, request))
        self.models[place].delete(document_id, version)

    @rule(place=_PLACES, colour=_COLOURS, version=_VERSIONS)
    def delete_where(self, place: tuple[str, str], colour: str, version: int) -> None:
        where = pb.Filter()
        where.must.add().match.field = "colour"
        where.must[0].match.values.add(string_value=colour)
        request = pb.DeleteDocumentsRequest(filter=where, version=version, collection=place[1])
        self.run(place, lambda on: on.call(on.matcher.DeleteDocuments, request))
        self.models[place].delete_where(colour, version)

    @rule(place=_PLACES)
    def change_the_model(self, place: tuple[str, str]) -> None:
        self.work(place[0])
        model = self.models[place]
        target = SECOND_MODEL if model.model_id == FIRST_MODEL else FIRST_MODEL
        self.run(place, lambda on: reindex(on, place[1], target))
        model.model_id = target
        self.check_all()

    @rule(place=_PLACES)
    def create_anew(self, place: tuple[str, str]) -> None:
        self.run(place, lambda on: on.delete(place[1]))
        self.create(place)

    @rule(name=st.sampled_from(["alpha", "beta"]))
    def work(self, name: str) -> None:
        self.world.run(self.world.installations[name].work())
        for place, model in self.models.items():
            if place[0] == name:
                model.work()

    @rule()
    def work_and_check(self) -> None:
        self.work("alpha")
        self.work("beta")
        self.check_all()

    def teardown(self) -> None:
        """Nothing is left for the next run."""
        if not self.models:
            return
        self.work_and_check()
        for place in PLACES:
            self.run(place, lambda on, name=place[1]: on.delete(name))

    def create(self, place: tuple[str, str]) -> None:
        model_id, lexical = PLACES[place]
        self.run(place, lambda on: on.create(place[1], bi_encoder=model_id, lexical=lexical))
        self.models[place] = CollectionModel(model_id=model_id)
        self.creation[place] = next(self.creations)

    def check_all(self) -> None:
        for place in PLACES:
            if not self.models[place].queue:
                self.run(place, lambda on, where=place: self.check(on, where))

    async def check(self, on: Installation, place: tuple[str, str]) -> None:
        """Every answer about the collection is what its own model says."""
        name, model = place[1], self.models[place]
        status = await on.status(name)
        counts = (status.document_count, status.queued_count, status.dead_letter_count)
        assert counts == (len(model.stored), 0, len(model.letters))
        assert status.model_id == model.model_id
        for document_id in IDS:
            assert (await on.status(name, document_id)).document_state == model.state(document_id)
        query = f"x of {name} {self.creation[place]}"
        answer = await on.match(name, query)
        found = {match.document.id: from_proto(match.document) for match in answer.matches}
        assert found == model.stored
        assert answer.bi_encoder_model_id == model.model_id
        for match in answer.matches:
            embeddings = [embedding_of(text, model.model_id)[0] for text in (query, match.document.text)]
            assert abs(match.explanation.cosine - float(embeddings[0] @ embeddings[1])) < 1e-3

    def run(self, place: tuple[str, str], work: Callable[[Installation], Coroutine[Any, Any, Any]]) -> Any:
        """Do something in the installation of a place."""
        return self.world.run(work(self.world.installations[place[0]]))


async def reindex(on: Installation, name: str, target: str) -> None:
    """As the command does, with connections and caches of its own; then delete the old index."""
    collection = await on.worker_store.current(name)
    options = ReindexOptions(**{**vars(OPTIONS), "model": target})
    report = await Reindexing(collection, on.encoder, options, NoProgress()).run()
    assert report.switched
    assert await steps.drop_old(collection.index) != target
    # The caches of the matcher would show it within two seconds.
    (await on.store.get(name)).index.collections.forget_roles()


async def test_no_collection_sees_anything_of_another(
    alpha: Installation, beta: Installation, encoder: ScriptedEncoder
):
    world = World(asyncio.get_running_loop(), {"alpha": alpha, "beta": beta}, encoder)
    await asyncio.to_thread(run_state_machine_as_test, lambda: Isolation(world), settings=EXAMPLES)
    for installation in (alpha, beta):
        listed = await installation.call(
            installation.collections.ListCollections, collection_pb.ListCollectionsRequest()
        )
        assert list(listed.collections) == []
        assert (await installation.qdrant.get_collections()).collections == []
    assert {key.partition(":")[2] for key in await alpha.redis.keys("*")} == {"id"}
