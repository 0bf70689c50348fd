"""Encode over real gRPC, with real models."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY
from sentence_transformers import SentenceTransformer

from services.encoder import metrics
from services.encoder.loading import load_models
from services.encoder.model_registry import ModelRegistry
from services.encoder.settings import EncoderSettings
from tests.support.encoder import make_tiny_bi_encoder
from tests.support.encoder_server import EncoderServer, serve_encoder
from tests.support.grpc_failures import failure_of
from textmatch import vectors
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.vectors import Embeddings

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TEXTS = ["the cat sits on the mat", "猫坐在垫子上", "🙂", "x", "the park " * 100]


def _rows(response: pb.EncodeResponse) -> Embeddings:
    return vectors.unpack(response.embeddings, response.dimension)


async def test_embeddings_are_the_models_own(encoder: EncoderServer, models: ModelRegistry):
    response = await encoder.stub.Encode(pb.EncodeRequest(texts=TEXTS))
    model = models.bi_encoders[0].model
    expected = model.embed(model.tokenize(TEXTS, is_query=False))
    assert _rows(response) == pytest.approx(expected, abs=1e-5)
    assert (response.dimension, response.model_id) == (32, model.model_id)
    assert list(response.token_counts) == [8, 8, 3, 3, 64]
    assert list(response.truncated) == [False, False, False, False, True]


async def test_unknown_tokens_are_counted_for_each_model(encoder: EncoderServer, models: ModelRegistry):
    labels = {"model_id": models.bi_encoders[0].model.model_id}

    def measured() -> float:
        return REGISTRY.get_sample_value("textmatch_encoder_unknown_tokens_ratio_sum", labels) or 0.0

    before = measured()
    await encoder.stub.Encode(pb.EncodeRequest(texts=["the cat"]))
    assert measured() == before
    # Three of five, with the tokens that begin and end a text.
    await encoder.stub.Encode(pb.EncodeRequest(texts=["鸡蛋花"]))
    assert measured() == pytest.approx(before + 0.6)


async def test_ten_thousand_texts_in_one_call(models: ModelRegistry):
    texts = [f"the cat {number} sits in park {number % 7}" for number in range(10_000)]
    async with serve_encoder(models, max_texts=10_000) as encoder:
        response = await encoder.stub.Encode(pb.EncodeRequest(texts=texts, priority=pb.PRIORITY_BULK))
        few = await encoder.stub.Encode(pb.EncodeRequest(texts=[texts[0], texts[4_321], texts[-1]]))
    rows = _rows(response)
    assert rows.shape == (10_000, 32)
    assert rows[[0, 4_321, 9_999]] == pytest.approx(_rows(few), abs=1e-5)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(10_000), abs=1e-5)


async def test_roles_choose_the_prompt(encoder: EncoderServer, models: ModelRegistry):
    model = models.bi_encoders[1].model
    embeddings = {}
    for role in (pb.ROLE_UNSPECIFIED, pb.ROLE_QUERY, pb.ROLE_DOCUMENT):
        request = pb.EncodeRequest(texts=TEXTS[:2], role=role, model=model.name)
        embeddings[role] = _rows(await encoder.stub.Encode(request))
    assert (embeddings[pb.ROLE_UNSPECIFIED] == embeddings[pb.ROLE_DOCUMENT]).all()
    assert np.abs(embeddings[pb.ROLE_QUERY] - embeddings[pb.ROLE_DOCUMENT]).max() > 1e-3


async def test_a_model_is_found_by_its_id_too(encoder: EncoderServer, models: ModelRegistry):
    model_id = models.bi_encoders[1].model.model_id
    response = await encoder.stub.Encode(pb.EncodeRequest(texts=["cat"], model=model_id))
    assert response.model_id == model_id


async def test_a_cut_dimension_is_normalised_again(encoder: EncoderServer):
    whole = _rows(await encoder.stub.Encode(pb.EncodeRequest(texts=TEXTS)))
    response = await encoder.stub.Encode(pb.EncodeRequest(texts=TEXTS, dimension=8))
    assert response.dimension == 8
    assert _rows(response) == pytest.approx(vectors.normalise(whole[:, :8]), abs=1e-6)


@pytest.mark.parametrize("dimension", [0, -1, 33])
async def test_a_dimension_that_the_model_does_not_have_is_refused(encoder: EncoderServer, dimension: int):
    failure = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=["x"], dimension=dimension)))
    assert (failure.code, failure.reason, failure.domain) == (INVALID, "INVALID_INPUT", "textmatch.dev")
    assert failure.fields == [("dimension", "FIELD_INVALID")]
    assert failure.descriptions == [f"is {dimension}; it must be 1 to 32"]


async def test_every_bad_text_is_named(encoder: EncoderServer):
    texts = ["fine", "", "nul \0 inside", "x" * 1_000_000, " \n\t", "fine too"]
    failure = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=texts)))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_INPUT")
    assert failure.fields == [
        ("texts[1]", "TEXT_EMPTY"),
        ("texts[2]", "TEXT_INVALID"),
        ("texts[3]", "TEXT_TOO_LARGE"),
        ("texts[4]", "TEXT_EMPTY"),
    ]
    assert failure.descriptions[2] == "has 1,000,000 bytes of UTF-8; the limit is 32,768"


async def test_a_text_of_the_largest_size_is_taken(encoder: EncoderServer):
    response = await encoder.stub.Encode(pb.EncodeRequest(texts=["a " * 16_384]))
    assert list(response.truncated) == [True]


@pytest.mark.parametrize(
    ("request_fields", "field", "reason"),
    [
        ({"texts": []}, "texts", "FIELD_INVALID"),
        ({"texts": ["x"] * 1025}, "texts", "TOO_MANY_ITEMS"),
        ({"texts": ["x"], "role": 7}, "role", "FIELD_INVALID"),
        ({"texts": ["x"], "priority": -1}, "priority", "FIELD_INVALID"),
        ({"texts": ["x"], "truncate": 9}, "truncate", "FIELD_INVALID"),
    ],
)
async def test_bad_fields_are_named(
    encoder: EncoderServer, request_fields: dict[str, object], field: str, reason: str
):
    failure = await failure_of(encoder.stub.Encode(pb.EncodeRequest(**request_fields)))
    assert (failure.code, failure.fields) == (INVALID, [(field, reason)])


async def test_an_unknown_model_is_answered_with_those_that_are_loaded(
    encoder: EncoderServer, models: ModelRegistry
):
    failure = await failure_of(encoder.stub.Encode(pb.EncodeRequest(texts=["x"], model="unknown")))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert failure.resource == ("model", "unknown")
    assert all(entry.model.name in failure.message for entry in models.bi_encoders)


async def test_a_call_while_the_models_load_gets_a_retry_delay():
    async with serve_encoder(None) as encoder:
        for call in (
            encoder.stub.Encode(pb.EncodeRequest(texts=["x"]), timeout=5),
            encoder.stub.Score(pb.ScoreRequest(query="x", texts=["y"]), timeout=5),
            encoder.stub.GetModels(pb.GetModelsRequest(), timeout=5),
        ):
            failure = await failure_of(call)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
            assert failure.retry_seconds is not None
            assert failure.retry_seconds > 0


async def test_callers_share_forward_passes(encoder: EncoderServer):
    batches = metrics.BATCH_TEXTS._sum.get(), _count(metrics.BATCH_TEXTS)
    calls = [encoder.stub.Encode(pb.EncodeRequest(texts=["the cat sits"])) for _ in range(64)]
    responses = await asyncio.gather(*calls)
    texts, passes = metrics.BATCH_TEXTS._sum.get() - batches[0], _count(metrics.BATCH_TEXTS) - batches[1]
    assert texts == 64
    assert passes < 40
    assert all(response.token_counts == [5] for response in responses)


async def test_stages_and_tokens_are_measured(encoder: EncoderServer):
    stages = ("tokenise", "queue", "forward", "serialise")
    before = [_count(metrics.STAGE_SECONDS.labels(stage)) for stage in stages]
    bulk_tokens = metrics.TOKENS_TOTAL.labels("bulk")._value.get()
    truncated = metrics.TRUNCATED_TOTAL._value.get()
    await encoder.stub.Encode(pb.EncodeRequest(texts=["the cat", "the " * 500], priority=pb.PRIORITY_BULK))
    after = [_count(metrics.STAGE_SECONDS.labels(stage)) for stage in stages]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert grown == [1, 1, 1, 1]
    assert metrics.TOKENS_TOTAL.labels("bulk")._value.get() - bulk_tokens == 4 + 64
    assert metrics.TRUNCATED_TOTAL._value.get() - truncated == 1


async def test_a_deadline_that_has_passed_ends_the_call(encoder: EncoderServer):
    started = time.monotonic()
    call = encoder.stub.Encode(pb.EncodeRequest(texts=["the cat " * 30] * 1024), timeout=0.02)
    failure = await failure_of(call)
    assert failure.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert time.monotonic() - started < 2


def _count(histogram: object) -> float:
    return sum(bucket.get() for bucket in histogram._buckets)


@pytest.fixture(scope="module")
def unnormalised(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """A model whose embeddings have different lengths."""
    directory = make_tiny_bi_encoder(tmp_path_factory.mktemp("models") / "long", normalizes=False)
    settings = EncoderSettings(
        bi_encoder=str(directory), cross_encoder="none", device="cpu", dtype="float32", threads=1
    )
    return load_models(settings).models


async def test_callers_who_want_length_1_and_others_share_batches(unnormalised: ModelRegistry):
    model = unnormalised.bi_encoders[0].model
    library = SentenceTransformer(model.name, device="cpu")
    expected = library.encode(TEXTS)
    assert np.ptp(np.linalg.norm(expected, axis=1)) > 0.1
    async with serve_encoder(unnormalised) as encoder:
        requests = [
            pb.EncodeRequest(texts=TEXTS, normalize=normalize, dimension=dimension)
            for normalize in (True, False, None)
            for dimension in (None, 8)
            for _ in range(4)
        ]
        responses = await asyncio.gather(*map(encoder.stub.Encode, requests))
    for request, response in zip(requests, responses, strict=True):
        cut = expected[:, :8] if request.HasField("dimension") else expected
        has_own_lengths = request.HasField("normalize") and not request.normalize
        wanted = cut if has_own_lengths else vectors.normalise(cut)
        assert _rows(response) == pytest.approx(wanted, abs=1e-4)


async def test_a_model_that_normalises_has_length_1_anyway(encoder: EncoderServer):
    response = await encoder.stub.Encode(pb.EncodeRequest(texts=TEXTS, normalize=False))
    assert np.linalg.norm(_rows(response), axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


async def test_the_start_of_a_text_is_cut_if_asked(encoder: EncoderServer):
    # 62 words and two special tokens are read.
    texts = ["the dog " * 40 + "cat " * 62, "cat " * 62, "cat " * 62 + "the dog " * 40]
    start, end = [
        _rows(await encoder.stub.Encode(pb.EncodeRequest(texts=texts, truncate=truncate)))
        for truncate in (pb.TRUNCATION_START, pb.TRUNCATION_END)
    ]
    assert start[0] == pytest.approx(start[1], abs=1e-5)
    assert end[2] == pytest.approx(end[1], abs=1e-5)
    assert np.abs(start[2] - start[1]).max() > 1e-3


async def test_all_texts_that_are_too_long_are_refused_if_asked(encoder: EncoderServer):
    texts = ["cat", "cat " * 62, "cat " * 63, "cat " * 8_000 + "x", "dog"]
    request = pb.EncodeRequest(texts=texts, truncate=pb.TRUNCATION_ERROR)
    failure = await failure_of(encoder.stub.Encode(request))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_INPUT")
    assert failure.fields == [("texts[2]", "TEXT_TOO_LARGE"), ("texts[3]", "TEXT_TOO_LARGE")]
    assert failure.descriptions == [
        "has 65 tokens; the model reads 64",
        "has 8,003 tokens; the model reads 64",
    ]
    fitting = await encoder.stub.Encode(pb.EncodeRequest(texts=texts[:2], truncate=pb.TRUNCATION_ERROR))
    assert list(fitting.truncated) == [False, False]
