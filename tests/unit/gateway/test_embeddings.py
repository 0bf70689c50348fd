"""Embeddings and models in the forms of OpenAI and text-embeddings-inference."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.gateway import serve_gateway
from tests.support.scripted_encoder_servicer import DIMENSION, ScriptedEncoder
from tests.support.scripted_servicer import RunningServer
from textmatch.v1 import encoder_service_pb2 as encoder_pb


async def test_a_single_text_is_embedded(http: httpx.AsyncClient):
    answer = await http.post("/v1/embeddings", json={"input": "four", "model": "tiny"})
    assert answer.status_code == 200
    assert answer.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [4.0] * DIMENSION, "truncated": False}],
        "model": "tiny-0123456789ab",
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


async def test_base64_is_little_endian_float32(http: httpx.AsyncClient):
    answer = await http.post("/v1/embeddings", json={"input": ["a", "剪切"], "encoding_format": "base64"})
    rows = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer.json()["data"]]
    np.testing.assert_array_equal(rows, [[1.0] * DIMENSION, [2.0] * DIMENSION])


@pytest.mark.parametrize("given", [[1, 2], [[1, 2], [3]]])
async def test_token_ids_are_refused_clearly(http: httpx.AsyncClient, given: list[object]):
    answer = await http.post("/v1/embeddings", json={"input": given})
    assert answer.status_code == 400
    [item] = answer.json()["items"]
    assert item["field"] == "input"
    assert item["description"] == "has lists of token ids; send strings"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2_049}, "input"),
        ({"input": ["a", " "]}, "input[1]"),
        ({"input": ["a", 2]}, "input[1]"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "inputtype": "query"}, "inputtype"),
        ({"input": "a", "truncate": "MIDDLE"}, "truncate"),
    ],
)
async def test_a_bad_request_names_its_item(http: httpx.AsyncClient, body: dict[str, Any], field: str):
    answer = await http.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    problem = answer.json()
    assert [item["field"] for item in problem["items"]] == [field]
    assert problem["error"]["param"] == field


async def test_half_a_character_is_refused(http: httpx.AsyncClient):
    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/embeddings", content=b'{"input": "\\ud800"}', headers=headers)
    assert answer.status_code == 400
    assert answer.json()["items"][0]["field"].startswith("input")


async def test_items_that_the_encoder_refuses_have_the_names_of_the_request(http: httpx.AsyncClient):
    answer = await http.post("/v1/embeddings", json={"input": ["a", "poison"]})
    assert answer.status_code == 400
    assert answer.json()["items"] == [
        {"field": "input[1]", "reason": "TEXT_FAILED", "description": "the model failed on it"}
    ]


async def test_more_texts_than_a_call_holds_are_sent_in_several(
    http: httpx.AsyncClient, encoder: ScriptedEncoder
):
    answer = await http.post("/v1/embeddings", json={"input": ["a"] * 20})
    assert [one["index"] for one in answer.json()["data"]] == list(range(20))
    assert encoder.batch_sizes == [8, 8, 4]


async def test_a_text_that_was_cut_says_so(http: httpx.AsyncClient):
    answer = await http.post("/v1/embeddings", json={"input": ["a" * 101, "a"]})
    assert [one["truncated"] for one in answer.json()["data"]] == [True, False]


async def test_models_are_listed_and_found_by_name_and_id(http: httpx.AsyncClient):
    [listed] = (await http.get("/v1/models")).json()["data"]
    assert listed == {
        "id": "tiny",
        "object": "model",
        "created": 0,
        "owned_by": "textmatch",
        "model_id": "tiny-0123456789ab",
        "kind": "bi-encoder",
        "dimension": DIMENSION,
        "max_tokens": 256,
        "is_default": True,
    }
    for name in ("tiny", "tiny-0123456789ab"):
        assert (await http.get(f"/v1/models/{name}")).json() == listed
    missing = await http.get("/v1/models/BAAI/bge-m3")
    assert (missing.status_code, missing.json()["reason"]) == (404, "MODEL_NOT_FOUND")


async def test_an_alias_stands_for_a_model(matcher_server: RunningServer, encoder_server: RunningServer):
    aliases = {"text-embedding-3-small": "", "other": "tiny"}
    async with (
        serve_gateway(matcher_server.address, encoder_server.address, aliases=aliases) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        for alias in aliases:
            assert (await http.get(f"/v1/models/{alias}")).json()["id"] == "tiny"
            answer = await http.post("/v1/embeddings", json={"input": "a", "model": alias})
            assert answer.status_code == 200


async def test_embed_of_text_embeddings_inference(http: httpx.AsyncClient):
    assert (await http.post("/embed", json={"inputs": "a"})).json() == [[1.0] * DIMENSION]
    both = await http.post("/embed", json={"inputs": ["a", "bb"], "normalize": True, "truncate": True})
    assert both.json() == [[1.0] * DIMENSION, [2.0] * DIMENSION]


async def test_embed_keeps_the_models_own_lengths_if_asked(http: httpx.AsyncClient):
    answer = await http.post("/embed", json={"inputs": "a", "normalize": False})
    assert answer.json() == [[-1.0] * DIMENSION]


async def test_embed_refuses_texts_that_are_too_long_if_asked(
    http: httpx.AsyncClient, encoder: ScriptedEncoder
):
    inputs = ["a", "a" * 101]
    long = await http.post("/embed", json={"inputs": inputs, "truncate": False})
    assert long.status_code == 400
    assert [(item["field"], item["reason"]) for item in long.json()["items"]] == [
        ("inputs[1]", "TEXT_TOO_LARGE")
    ]
    assert isinstance(long.json()["error"], str)
    for direction in ("left", "Left", "right"):
        body = {"inputs": inputs, "truncation_direction": direction}
        assert (await http.post("/embed", json=body)).is_success
    assert encoder.truncations[1:] == [
        encoder_pb.TRUNCATION_START,
        encoder_pb.TRUNCATION_START,
        encoder_pb.TRUNCATION_UNSPECIFIED,
    ]


async def test_embeddings_have_the_options_of_similar_servers(
    http: httpx.AsyncClient, encoder: ScriptedEncoder
):
    raw = await http.post("/v1/embeddings", json={"input": "four", "normalize": False})
    assert raw.json()["data"][0]["embedding"] == [-4.0] * DIMENSION
    for truncate in ("END", "START", "NONE"):
        assert (await http.post("/v1/embeddings", json={"input": "a", "truncate": truncate})).is_success
    assert encoder.truncations[1:] == [
        encoder_pb.TRUNCATION_END,
        encoder_pb.TRUNCATION_START,
        encoder_pb.TRUNCATION_ERROR,
    ]
    long = await http.post("/v1/embeddings", json={"input": ["a", "a" * 101], "truncate": "NONE"})
    assert (long.status_code, long.json()["items"][0]["field"]) == (400, "input[1]")


async def test_info_names_the_default_model(http: httpx.AsyncClient):
    answer = (await http.get("/info")).json()
    assert (answer["model_id"], answer["max_input_length"]) == ("tiny-0123456789ab", 256)


async def test_health_is_that_of_both_servers(http: httpx.AsyncClient, encoder_server: RunningServer):
    answer = await http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"encoder": "SERVING", "matcher": "SERVING"})
    encoder_server.set_serving(is_serving=False)
    answer = await http.get("/health")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the encoder is NOT_SERVING"
