"""Collections over real gRPC: made, listed, deleted, adopted; and who may use them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from tests.integration.collections.conftest import FIRST_MODEL, SECOND_MODEL
from tests.integration.collections.installation import Installation
from tests.integration.ingest.scripted_encoder import ScriptedEncoder
from textmatch.collection_config import CollectionConfig
from textmatch.errors import (
    CollectionDenied,
    CollectionExists,
    CollectionNotFound,
    CollectionNotOwned,
    DocumentNotFound,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
)
from textmatch.queue.messages import Envelope
from textmatch.runtime.grpc_errors import from_status
from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import matcher_service_pb2 as pb

Install = Callable[..., Awaitable[Installation]]
KEYWORD = collection_pb.PAYLOAD_INDEX_KIND_KEYWORD


def document(document_id: str = "a", text: str = "text", version: int | None = None) -> pb.Document:
    return pb.Document(id=document_id, text=text, version=version)


def names_in_qdrant(names: list[str]) -> set[str]:
    """Without their generations."""
    return {re.sub(r"--[0-9a-f]{8}$", "", name) for name in names}


async def physical(installation: Installation) -> list[str]:
    return [one.name for one in (await installation.qdrant.get_collections()).collections]


async def test_a_collection_is_made_as_asked_for(alpha: Installation):
    index = collection_pb.PayloadIndex(field="customer", kind=KEYWORD, is_tenant=True)
    made = await alpha.create("faq", bi_encoder=SECOND_MODEL, lexical=False, payload_indexes=[index])
    assert (made.name, made.bi_encoder, made.lexical) == ("faq", SECOND_MODEL, False)
    assert (made.model_id, made.document_count) == (SECOND_MODEL, 0)
    assert made.create_time.seconds > 1_700_000_000
    assert list(made.payload_indexes) == [index]
    got = await alpha.call(alpha.collections.GetCollection, collection_pb.GetCollectionRequest(name="faq"))
    assert got.collection == made
    [name] = await physical(alpha)
    assert names_in_qdrant([name]) == {f"faq--{SECOND_MODEL}"}
    info = await alpha.qdrant.get_collection("faq")
    assert not info.config.params.sparse_vectors
    assert set(info.payload_schema) == {
        "attributes.customer",
        "version",
        "accepted_us",
        "passage_of",
        "truncated",
    }


async def test_creating_it_again_changes_nothing(alpha: Installation):
    made = await alpha.create("faq")
    assert await alpha.create("faq") == made
    with pytest.raises(CollectionExists, match='"faq" with other settings'):
        await alpha.create("faq", lexical=False)
    assert len(await physical(alpha)) == 1


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"name": "No!"}, InvalidInput),
        ({"name": ""}, InvalidInput),
        ({"name": "a--b"}, InvalidInput),
        ({"name": "faq", "bi_encoder": "unknown"}, ModelNotFound),
        ({"name": "faq", "cross_encoder": "unknown"}, ModelNotFound),
        ({"name": "faq", "payload_indexes": [{"field": "a"}]}, InvalidInput),
        ({"name": "faq", "payload_indexes": [{"kind": KEYWORD}]}, InvalidInput),
        ({"name": "faq", "payload_indexes": [{"field": "a..b", "kind": KEYWORD}]}, InvalidInput),
    ],
)
async def test_impossible_settings_are_refused(
    alpha: Installation, settings: dict[str, Any], error: type[Exception]
):
    with pytest.raises(error):
        await alpha.create(**settings)
    assert await alpha.store.registry.all() == []
    assert await physical(alpha) == []


async def test_collections_are_listed_page_by_page(alpha: Installation):
    for name in ("c", "a", "b"):
        await alpha.create(name)
    pages, token = [], ""
    while True:
        request = collection_pb.ListCollectionsRequest(page_size=2, page_token=token)
        page = await alpha.call(alpha.collections.ListCollections, request)
        pages.append([one.name for one in page.collections])
        token = page.next_page_token
        if not token:
            break
    assert pages == [["a", "b"], ["c"]]
    with pytest.raises(InvalidInput, match="page_size"):
        await alpha.call(
            alpha.collections.ListCollections, collection_pb.ListCollectionsRequest(page_size=-1)
        )


def doors(installation: Installation) -> dict[str, Callable[[str], Awaitable[Any]]]:
    """Every call that names a collection."""
    call, matcher = installation.call, installation.matcher

    async def batch(name: str) -> None:
        request = pb.BatchMatchRequest(queries=["q"], collection=name)

        async def answers(request: Any, **options: Any) -> list[Any]:
            return [one async for one in matcher.BatchMatch(request, **options)]

        for answer in await call(answers, request):
            if answer.HasField("error"):
                raise from_status(answer.error)

    return {
        "Match": lambda name: call(matcher.Match, pb.MatchRequest(query="q", collection=name)),
        "BatchMatch": batch,
        "IngestDocuments": lambda name: installation.ingest(name, document()),
        "GetDocument": lambda name: call(matcher.GetDocument, pb.GetDocumentRequest(id="a", collection=name)),
        "GetDocuments": lambda name: call(
            matcher.GetDocuments, pb.GetDocumentsRequest(ids=["a"], collection=name)
        ),
        "ListDocuments": lambda name: call(matcher.ListDocuments, pb.ListDocumentsRequest(collection=name)),
        "CountDocuments": lambda name: call(
            matcher.CountDocuments, pb.CountDocumentsRequest(collection=name)
        ),
        "ListDeadLetters": lambda name: call(
            matcher.ListDeadLetters, pb.ListDeadLettersRequest(collection=name)
        ),
        "ReplayDeadLetters": lambda name: call(
            matcher.ReplayDeadLetters, pb.ReplayDeadLettersRequest(ids=["a"], collection=name)
        ),
        "DropDeadLetters": lambda name: call(
            matcher.DropDeadLetters, pb.DropDeadLettersRequest(ids=["a"], collection=name)
        ),
        "DeleteDocuments": lambda name: call(
            matcher.DeleteDocuments, pb.DeleteDocumentsRequest(ids=["a"], collection=name)
        ),
        "GetIngestStatus": installation.status,
        "GetCollection": lambda name: call(
            installation.collections.GetCollection, collection_pb.GetCollectionRequest(name=name)
        ),
        "DeleteCollection": installation.delete,
        "AdoptCollection": installation.adopt,
    }


async def test_an_unknown_collection_is_not_found_at_any_door(alpha: Installation):
    for door in doors(alpha).values():
        with pytest.raises(CollectionNotFound, match='no collection "faq"'):
            await door("faq")
        with pytest.raises(InvalidInput, match="(collection|name): is 'No such!'"):
            await door("No such!")
    for door in (alpha.delete, alpha.adopt):
        with pytest.raises(InvalidInput, match="name: is ''"):
            await door("")
    assert await alpha.redis.keys("*") in ([], ["alpha:id"])


async def test_default_is_made_by_the_first_write(alpha: Installation):
    assert list((await alpha.match("", "q")).matches) == []
    assert (await alpha.status("")).collection == "default"
    with pytest.raises(DocumentNotFound):
        await alpha.call(alpha.matcher.GetDocument, pb.GetDocumentRequest(id="a"))
    assert await alpha.store.registry.all() == []
    await alpha.ingest("", document())
    assert [one.name for one in await alpha.store.registry.all()] == ["default"]
    await alpha.work()
    assert [match.document.id for match in (await alpha.match("", "text")).matches] == ["a"]
    assert names_in_qdrant(await physical(alpha)) == {f"default--{FIRST_MODEL}"}
    assert (await alpha.status("default")).model_id == FIRST_MODEL


async def test_default_is_made_by_a_celery_client_too(alpha: Installation):
    entry = '{"id": "a", "text": "t", "version": 1}'
    assert await alpha.handler.handle(Envelope("default", "", 1.0).wrap([entry]), "tag")
    assert (await alpha.status("")).document_count == 1
    assert await alpha.handler.handle(Envelope("never-made", "", 1.0).wrap([entry]), "tag")
    assert [one.name for one in await alpha.store.registry.all()] == ["default"]


async def test_equal_ids_of_two_collections_are_two_documents(alpha: Installation):
    await alpha.create("one")
    await alpha.create("two", bi_encoder=SECOND_MODEL)
    await alpha.ingest("one", document("a", "first", 5))
    await alpha.ingest("two", document("a", "second", 3))
    await alpha.work()
    for name, text, model in (("one", "first", FIRST_MODEL), ("two", "second", SECOND_MODEL)):
        answer = await alpha.match(name, text)
        assert answer.bi_encoder_model_id == model
        assert [match.document.text for match in answer.matches] == [text]
    await alpha.call(
        alpha.matcher.DeleteDocuments, pb.DeleteDocumentsRequest(ids=["a"], version=9, collection="one")
    )
    assert (await alpha.status("one", "a")).document_state == pb.DOCUMENT_STATE_DELETED
    assert (await alpha.status("two", "a")).document_state == pb.DOCUMENT_STATE_INDEXED


async def test_a_deleted_collection_leaves_nothing(alpha: Installation, encoder: ScriptedEncoder):
    await alpha.create("faq")
    await alpha.create("kept")
    await alpha.ingest("faq", document("a"), document("bad", "refuse this text"))
    await alpha.ingest("kept", document("a"))
    await alpha.work()
    await alpha.ingest("faq", document("queued"))
    await alpha.call(alpha.matcher.DeleteDocuments, pb.DeleteDocumentsRequest(ids=["gone"], collection="faq"))
    await alpha.delete("faq")
    assert names_in_qdrant(await physical(alpha)) == {f"kept--{FIRST_MODEL}"}
    assert await alpha.redis.keys("alpha:faq:*") == []
    with pytest.raises(CollectionNotFound):
        await alpha.match("faq", "text")
    calls = len(encoder.calls)
    await alpha.work()
    assert len(encoder.calls) == calls
    assert await alpha.redis.keys("alpha:faq:*") == []
    assert (await alpha.status("kept")).document_count == 1


async def test_a_collection_made_again_gets_nothing_from_before(alpha: Installation):
    await alpha.create("faq")
    await alpha.ingest("faq", document("old", "old text", 1))
    [(old_message, stamp)] = await alpha.queued()
    await alpha.delete("faq")
    await alpha.create("faq")
    await alpha.ingest("faq", document("new", "new text", 1))
    assert await alpha.handler.handle(old_message, "tag", stamp)
    await alpha.work()
    answer = await alpha.match("faq", "text")
    assert [match.document.id for match in answer.matches] == ["new"]
    assert (await alpha.status("faq", "old")).document_state == pb.DOCUMENT_STATE_UNKNOWN
    status = await alpha.status("faq")
    assert (status.document_count, status.queued_count, status.dead_letter_count) == (1, 0, 0)


async def test_a_worker_in_the_middle_of_a_batch_does_not_write_into_the_next_creation(
    alpha: Installation, encoder: ScriptedEncoder
):
    await alpha.create("faq")
    await alpha.ingest("faq", document("old", "old text", 1))
    [(message, stamp)] = await alpha.queued()
    deps = alpha.dependencies(await alpha.worker_store.get("faq"))
    recreated = False
    prepare = type(deps.collection.index).upsert

    async def late(*arguments: Any, **options: Any) -> None:
        """The worker has its embedding; before it writes, the collection is made anew."""
        nonlocal recreated
        if not recreated:
            recreated = True
            await alpha.delete("faq")
            await alpha.create("faq")
        await prepare(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(deps.collection.index), "upsert", late)
        assert await alpha.handler.handle(message, "tag", stamp)
    assert recreated
    status = await alpha.status("faq")
    assert (status.document_count, status.queued_count, status.dead_letter_count) == (0, 0, 0)
    assert list((await alpha.match("faq", "old text")).matches) == []
    assert len(await physical(alpha)) == 1


async def test_what_an_interrupted_delete_left_is_removed_by_the_next_create(alpha: Installation):
    await alpha.create("faq")
    await alpha.ingest("faq", document())
    await alpha.work()
    config = await alpha.store.registry.find("faq")
    assert config is not None
    await alpha.ingest("faq", document("pending"))
    # As far as a process gets that dies at once.
    await alpha.store.registry.remove(config)
    made = await alpha.create("faq", bi_encoder=SECOND_MODEL)
    assert await alpha.redis.keys(f"alpha:faq:{config.generation}:*") == []
    assert (made.model_id, made.document_count) == (SECOND_MODEL, 0)
    assert names_in_qdrant(await physical(alpha)) == {f"faq--{SECOND_MODEL}"}


async def test_another_installations_collection_is_refused_at_every_door(
    alpha: Installation, beta: Installation
):
    await alpha.create("faq")
    await alpha.ingest("", document("a", "of alpha"))
    await alpha.work()
    with pytest.raises(CollectionNotOwned, match="use another name.*collections adopt faq"):
        await beta.create("faq")
    assert await beta.store.registry.all() == []
    for name, door in doors(beta).items():
        if name.endswith("DeadLetters"):
            # They are beta's own, in its Redis, and must be there while Qdrant is away.
            await door("")
        elif name not in ("DeleteCollection", "AdoptCollection"):
            with pytest.raises(CollectionNotOwned, match="adopt default"):
                await door("")
    with pytest.raises(CollectionNotFound):
        await beta.delete("default")
    entry = '{"id": "a", "text": "of beta", "version": 1}'
    # A Celery client's document waits until the operator has decided.
    assert not await beta.handler.handle(Envelope("default", "", 1.0).wrap([entry]), "tag")
    assert [match.document.text for match in (await alpha.match("", "a")).matches] == ["of alpha"]


async def test_an_adopted_collection_changes_hands(alpha: Installation, beta: Installation):
    await alpha.create("faq", bi_encoder=SECOND_MODEL)
    await alpha.ingest("faq", document("a", "of alpha"))
    await alpha.work()
    await beta.adopt("faq")
    assert [match.document.text for match in (await beta.match("faq", "q")).matches] == ["of alpha"]
    await beta.ingest("faq", document("b", "of beta"))
    await beta.work()
    got = await beta.call(beta.collections.GetCollection, collection_pb.GetCollectionRequest(name="faq"))
    assert (got.collection.bi_encoder, got.collection.document_count) == (SECOND_MODEL, 2)
    alpha.store.close()
    with pytest.raises(CollectionNotOwned):
        await alpha.match("faq", "q")
    listed = await alpha.call(alpha.collections.ListCollections, collection_pb.ListCollectionsRequest())
    assert [(one.name, one.document_count) for one in listed.collections] == [("faq", 0)]
    # Deleting it here leaves the other's documents.
    await alpha.delete("faq")
    assert (await beta.status("faq")).document_count == 2


async def test_a_collection_is_adopted_after_redis_was_lost(alpha: Installation, installations: Install):
    await alpha.create("faq", lexical=False)
    await alpha.ingest("faq", document())
    await alpha.ingest("", document())
    await alpha.work()
    await alpha.redis.flushall()
    again = await installations("alpha")
    with pytest.raises(CollectionNotOwned):
        await again.ingest("", document("b"))
    for name in ("faq", "default"):
        await again.adopt(name)
        await again.adopt(name)
        await again.ingest(name, document("b"))
    await again.work()
    assert (await again.status("faq")).document_count == (await again.status("")).document_count == 2
    assert not (await again.store.get("faq")).config.lexical


async def test_adopting_never_replaces_an_own_collection(alpha: Installation, beta: Installation):
    await alpha.create("faq")
    config = await alpha.store.registry.create((await alpha.store.get("faq")).config)
    await beta.store.registry.create(config)
    with pytest.raises(CollectionExists, match="another collection"):
        await beta.adopt("faq")


async def test_a_name_that_something_else_uses_is_not_taken(alpha: Installation):
    vectors = {"v": models.VectorParams(size=2, distance=models.Distance.COSINE)}
    await alpha.qdrant.create_collection("faq", vectors)
    with pytest.raises(CollectionNotOwned):
        await alpha.create("faq")
    with pytest.raises(CollectionNotFound):
        await alpha.adopt("faq")


KEY_LINES = """
one  read,write  the-key-of-one-0123456789  collections=one
all  admin       the-key-of-all-0123456789
own  admin       the-key-of-own-0123456789  collections=one,new
"""


async def test_a_key_opens_its_collections_only(installations: Install, tmp_path: Path):
    keys_file = tmp_path / "keys"
    keys_file.write_text(KEY_LINES)
    guarded = await installations("alpha", keys_file)
    of_one, of_all, of_own = (f"the-key-of-{name}-0123456789" for name in ("one", "all", "own"))

    async def create(name: str, key: str) -> None:
        wanted = collection_pb.Collection(name=name)
        request = collection_pb.CreateCollectionRequest(collection=wanted)
        await guarded.call(guarded.collections.CreateCollection, request, key)

    for name in ("one", "two"):
        await create(name, of_all)
    with pytest.raises(PermissionDenied, match="scope admin"):
        await create("new", of_one)
    with pytest.raises(CollectionDenied, match="must not use this collection"):
        await create("other", of_own)
    await create("new", of_own)
    matcher, collections = guarded.matcher, guarded.collections
    asked: list[tuple[Any, Callable[[str], Any]]] = [
        (matcher.Match, lambda name: pb.MatchRequest(query="q", collection=name)),
        (matcher.GetDocument, lambda name: pb.GetDocumentRequest(id="a", collection=name)),
        (matcher.GetDocuments, lambda name: pb.GetDocumentsRequest(ids=["a"], collection=name)),
        (matcher.ListDocuments, lambda name: pb.ListDocumentsRequest(collection=name)),
        (matcher.CountDocuments, lambda name: pb.CountDocumentsRequest(collection=name)),
        (matcher.ListDeadLetters, lambda name: pb.ListDeadLettersRequest(collection=name)),
        (matcher.ReplayDeadLetters, lambda name: pb.ReplayDeadLettersRequest(ids=["a"], collection=name)),
        (matcher.DropDeadLetters, lambda name: pb.DropDeadLettersRequest(ids=["a"], collection=name)),
        (matcher.DeleteDocuments, lambda name: pb.DeleteDocumentsRequest(ids=["a"], collection=name)),
        (matcher.GetIngestStatus, lambda name: pb.GetIngestStatusRequest(collection=name)),
        (collections.GetCollection, lambda name: collection_pb.GetCollectionRequest(name=name)),
    ]
    for method, request in asked:
        for name in ("two", "", "unknown"):
            with pytest.raises(CollectionDenied):
                await guarded.call(method, request(name), of_one)
        try:
            await guarded.call(method, request("one"), of_one)
        except DocumentNotFound:
            assert method is matcher.GetDocument
    await guarded.ingest("one", document(), key=of_one)
    with pytest.raises(CollectionDenied):
        await guarded.ingest("two", document(), key=of_one)
    for method, denied in (
        (collections.DeleteCollection, collection_pb.DeleteCollectionRequest(name="two")),
        (collections.AdoptCollection, collection_pb.AdoptCollectionRequest(name="two")),
    ):
        with pytest.raises(CollectionDenied):
            await guarded.call(method, denied, of_own)
    for key, names in ((of_one, ["one"]), (of_own, ["new", "one"]), (of_all, ["new", "one", "two"])):
        listed = await guarded.call(collections.ListCollections, collection_pb.ListCollectionsRequest(), key)
        assert [one.name for one in listed.collections] == names


async def test_a_key_is_charged_for_the_collections_that_it_lists(installations: Install, tmp_path: Path):
    keys_file = tmp_path / "keys"
    keys_file.write_text("all  admin  the-key-of-all-0123456789  10")
    guarded = await installations("alpha", keys_file)
    for name in ("a", "b", "c"):
        await guarded.store.registry.create(CollectionConfig(name))
    request = collection_pb.ListCollectionsRequest()
    # A burst of 100 tokens, of which a list of three takes 150 and a few for its request.
    listed = await guarded.call(guarded.collections.ListCollections, request, "the-key-of-all-0123456789")
    assert len(listed.collections) == 3
    with pytest.raises(Overloaded, match="used up its 10 tokens per second"):
        await guarded.call(guarded.collections.ListCollections, request, "the-key-of-all-0123456789")


async def test_what_is_deleted_while_collections_are_listed_is_left_out(
    alpha: Installation, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a", "b"):
        await alpha.create(name)
    read_all = alpha.store.registry.all

    async def all_but_late() -> list[CollectionConfig]:
        configs = await read_all()
        await alpha.store.delete("a")
        return configs

    monkeypatch.setattr(alpha.store.registry, "all", all_but_late)
    listed = await alpha.call(alpha.collections.ListCollections, collection_pb.ListCollectionsRequest())
    assert [one.name for one in listed.collections] == ["b"]


async def test_a_dry_run_makes_no_collection(alpha: Installation):
    counting = pb.DeleteDocumentsRequest(ids=["a"], dry_run=True)
    assert (await alpha.call(alpha.matcher.DeleteDocuments, counting)).deleted_count == 0
    assert await alpha.store.registry.all() == []
    await alpha.ingest("", document())
    await alpha.work()
    assert (await alpha.call(alpha.matcher.DeleteDocuments, counting)).deleted_count == 1
    assert (await alpha.status("")).document_count == 1
