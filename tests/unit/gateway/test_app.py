"""The OpenAPI document is complete and true; pages of other origins are kept out."""

from __future__ import annotations

import httpx

from tests.support.gateway import serve_gateway
from tests.support.scripted_servicer import RunningServer


async def test_the_document_is_openapi_3_1_and_names_every_route(http: httpx.AsyncClient):
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert {
        "/v1/embeddings",
        "/v1/models",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/embed",
        "/info",
        "/health",
        "/v1/score",
        "/v1/collections",
        "/v1/collections/{collection}",
        "/v1/collections/{collection}:match",
        "/v1/collections/{collection}:batchMatch",
        "/v1/collections/{collection}/documents",
        "/v1/collections/{collection}/documents/{document_id}",
    } <= document["paths"].keys()


async def test_every_reference_leads_somewhere(http: httpx.AsyncClient):
    answer = await http.get("/openapi.json")
    document = answer.json()
    named = {part.split('"', 1)[0] for part in answer.text.split("#/components/schemas/")[1:]}
    assert named <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in named


async def test_pages_of_other_origins_are_refused_unless_they_are_named(
    matcher_server: RunningServer, encoder_server: RunningServer
):
    addresses = matcher_server.address, encoder_server.address
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    for origins, allowed in (((), None), (("https://app.example",), "https://app.example")):
        async with (
            serve_gateway(*addresses, cors_origins=origins) as url,
            httpx.AsyncClient(base_url=url) as http,
        ):
            answer = await http.options("/v1/embeddings", headers=asked)
            assert answer.headers.get("access-control-allow-origin") == allowed
