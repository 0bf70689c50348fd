"""Every method of both Python clients against a whole stack; both get the same answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.client_calls import ANSWERS, EXAMPLES, call
from tests.support.loop_client import LoopClient
from tests.support.stack import Stack
from textmatch.client import DocumentState, FieldMatch, FieldRange, TextMatchClient
from textmatch.errors import DocumentNotFound, InvalidInput

INVOICES = [
    {
        "id": f"invoice-{number}",
        "text": f"invoice number {number} of {'March' if number % 3 else 'April'}",
        "attributes": {"tenant": "north" if number % 2 else "south", "number": number},
    }
    for number in range(40)
]
QUERIES = [f"the invoice with number {number}" for number in range(30)]


@pytest.fixture(params=[TextMatchClient, LoopClient], ids=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, stack: Stack) -> Iterator[TextMatchClient]:
    addresses = stack.file["matcher"], stack.file["encoder"]
    with request.param(*addresses, timeout_seconds=60) as client:
        client.ingest_all([*INVOICES, {"id": "a", "text": "the cat"}], wait=True)
        yield client
        client.delete([str(invoice["id"]) for invoice in INVOICES])
        client.delete("a")


@pytest.mark.parametrize("method", EXAMPLES)
def test_every_method_works(client: TextMatchClient, method: str):
    assert isinstance(call(client, method, timeout_seconds=60), ANSWERS[method])


def test_filters_in_every_form_keep_tenants_apart(client: TextMatchClient):
    for where in (FieldMatch("tenant", ("north",)), 'tenant = "north"'):
        matches = client.match("invoice", where=where, top_k=40).matches
        assert {match.document.attributes["tenant"] for match in matches} == {"north"}
        assert len(matches) == 20
    assert client.match("invoice", where='tenant = "nobody"').matches == ()
    assert len(client.match("invoice", where=FieldRange("number", lt=5), top_k=40).matches) == 5
    for lost in ({"filter": "x"}, {"topk": 1}, {"limit": 1}, {"score_threshold": 0.9}):
        with pytest.raises(TypeError, match="did you mean"):
            client.match("invoice", **lost)
    with pytest.raises(InvalidInput):
        client.match("invoice", where="")


def test_the_score_of_a_match_as_min_score_keeps_the_match(client: TextMatchClient):
    for rerank in (False, True, None):
        for query in QUERIES[:6]:
            for match in client.match(query, rerank=rerank):
                kept = client.match(query, rerank=rerank, min_score=match.score)
                assert match.document.id in [one.document.id for one in kept]


def test_batches_and_single_calls_have_the_same_answers(client: TextMatchClient):
    answers = list(client.batch_match((query for query in [*QUERIES, " "]), top_k=3))
    assert [one.query_index for one in answers] == list(range(31))
    assert isinstance(answers[30].error, InvalidInput)
    for query, answer in zip(QUERIES[:3], answers, strict=False):
        assert answer.result is not None
        ids = [match.document.id for match in answer.result]
        assert ids == [match.document.id for match in client.match(query, top_k=3)]


def test_generators_are_deleted_encoded_and_scored(client: TextMatchClient):
    assert client.delete(f"invoice-{number}" for number in range(5)) == 5
    with pytest.raises(DocumentNotFound):
        client.get_document("invoice-3")
    assert client.ingest_status("invoice-3").document_state is DocumentState.DELETED
    texts = [str(invoice["text"]) for invoice in INVOICES]
    embeddings = client.encode(text for text in texts).embeddings
    assert embeddings.shape[0] == 40
    assert np.allclose(embeddings, client.encode(texts).embeddings, atol=1e-3)
    assert len(client.score(texts[0], (text for text in texts)).scores) == 40
    assert len(client.score_pairs((text, text) for text in texts).scores) == 40
