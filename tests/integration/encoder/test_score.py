"""Score over real gRPC, with real models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from services.encoder.loading import load_models
from services.encoder.model_registry import ModelRegistry
from services.encoder.settings import EncoderSettings
from tests.support.encoder import make_tiny_cross_encoder
from tests.support.encoder_server import EncoderServer, serve_encoder
from tests.support.grpc_failures import failure_of
from textmatch import vectors
from textmatch.v1 import encoder_service_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
QUERY = "what is the cat"
TEXTS = ["the cat sits", "猫", "the park " * 200]
PAIRS = [pb.TextPair(first=QUERY, second=text) for text in TEXTS]
EMBEDDING_SCORERS = (pb.SCORER_COSINE, pb.SCORER_PAIR_CLASSIFIER)


async def test_the_cross_encoder_scores_pairs_of_texts(encoder: EncoderServer, models: ModelRegistry):
    response = await encoder.stub.Score(pb.ScoreRequest(query=QUERY, texts=TEXTS))
    model = models.cross_encoders[0].model
    scores, raw = model.score(model.tokenize_pairs([(QUERY, text) for text in TEXTS]))
    assert list(response.scores) == pytest.approx(scores, abs=1e-5)
    assert list(response.raw_scores) == pytest.approx(raw, abs=1e-5)
    assert list(response.truncated) == [False, False, True]
    assert response.model_id == model.model_id


@pytest.mark.parametrize("scorer", pb.Scorer.values())
async def test_pairs_score_as_a_query_with_texts(encoder: EncoderServer, scorer: int):
    by_query = await encoder.stub.Score(pb.ScoreRequest(query=QUERY, texts=TEXTS, scorer=scorer))
    by_pairs = await encoder.stub.Score(pb.ScoreRequest(pairs=PAIRS, scorer=scorer))
    assert list(by_pairs.scores) == pytest.approx(list(by_query.scores), abs=1e-5)
    assert list(by_pairs.truncated) == list(by_query.truncated)
    assert by_pairs.model_id == by_query.model_id
    assert all(0 <= score <= 1 for score in by_query.scores)


async def test_the_cosine_is_that_of_the_embeddings(encoder: EncoderServer):
    response = await encoder.stub.Score(pb.ScoreRequest(query=QUERY, texts=TEXTS, scorer=pb.SCORER_COSINE))
    encoded = await encoder.stub.Encode(pb.EncodeRequest(texts=[QUERY, *TEXTS]))
    rows = vectors.unpack(encoded.embeddings, encoded.dimension)
    assert list(response.raw_scores) == pytest.approx(rows[1:] @ rows[0], abs=1e-5)
    assert list(response.scores) == pytest.approx(np.clip(rows[1:] @ rows[0], 0, 1), abs=1e-5)
    assert response.model_id == encoded.model_id


@pytest.mark.parametrize("scorer", EMBEDDING_SCORERS)
async def test_stored_embeddings_score_as_their_texts(
    encoder: EncoderServer, models: ModelRegistry, scorer: int
):
    model = models.bi_encoders[1].model.name
    encoded = await encoder.stub.Encode(pb.EncodeRequest(texts=TEXTS, model=model))
    by_texts = await encoder.stub.Score(pb.ScoreRequest(query=QUERY, texts=TEXTS, scorer=scorer, model=model))
    by_embeddings = await encoder.stub.Score(
        pb.ScoreRequest(query=QUERY, embeddings=encoded.embeddings, scorer=scorer, model=model)
    )
    assert list(by_embeddings.scores) == pytest.approx(list(by_texts.scores), abs=1e-5)
    assert list(by_embeddings.truncated) == [False, False, False]


async def test_the_first_model_with_a_classifier_classifies(encoder: EncoderServer, models: ModelRegistry):
    request = pb.ScoreRequest(query="the cat", texts=["the cat", "park"], scorer=pb.SCORER_PAIR_CLASSIFIER)
    response = await encoder.stub.Score(request)
    assert response.model_id == models.bi_encoders[1].model.model_id
    assert response.scores[0] > response.scores[1]


async def test_equal_texts_have_the_cosine_1(encoder: EncoderServer):
    request = pb.ScoreRequest(query="the cat", texts=["the cat"], scorer=pb.SCORER_COSINE)
    assert list((await encoder.stub.Score(request)).scores) == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize(
    ("request_fields", "fields"),
    [
        ({"query": "x"}, [("texts", "FIELD_INVALID")]),
        ({"query": "x", "texts": ["y"], "pairs": PAIRS}, [("texts", "FIELD_INVALID")]),
        ({"query": "x", "texts": ["y"], "embeddings": b"1234"}, [("texts", "FIELD_INVALID")]),
        ({"texts": ["y"]}, [("query", "TEXT_EMPTY")]),
        ({"query": "\0", "texts": ["y", ""]}, [("query", "TEXT_INVALID"), ("texts[1]", "TEXT_EMPTY")]),
        ({"query": "x", "texts": ["y"] * 1025}, [("texts", "TOO_MANY_ITEMS")]),
        ({"query": "x", "pairs": PAIRS}, [("query", "FIELD_INVALID")]),
        ({"pairs": PAIRS * 400}, [("pairs", "TOO_MANY_ITEMS")]),
        ({"query": "x", "texts": ["y"], "scorer": 9}, [("scorer", "FIELD_INVALID")]),
        ({"query": "x", "texts": ["y"], "priority": 9}, [("priority", "FIELD_INVALID")]),
        ({"query": "x", "texts": ["y"], "truncate": 9}, [("truncate", "FIELD_INVALID")]),
        ({"query": "x", "embeddings": b"12"}, [("embeddings", "FIELD_INVALID")]),
        ({"query": "x", "embeddings": bytes(128), "scorer": 1}, [("embeddings", "FIELD_INVALID")]),
        ({"query": "x", "embeddings": bytes(100), "scorer": 3}, [("embeddings", "FIELD_INVALID")]),
        ({"query": "x", "embeddings": b"\xff" * 128, "scorer": 3}, [("embeddings", "FIELD_INVALID")]),
        ({"query": "x", "embeddings": bytes(128 * 1025), "scorer": 3}, [("embeddings", "TOO_MANY_ITEMS")]),
    ],
)
async def test_bad_fields_are_named(
    encoder: EncoderServer, request_fields: dict[str, object], fields: list[tuple[str, str]]
):
    failure = await failure_of(encoder.stub.Score(pb.ScoreRequest(**request_fields)))
    assert (failure.code, failure.reason, failure.fields) == (INVALID, "INVALID_INPUT", fields)


async def test_bad_texts_of_pairs_are_named(encoder: EncoderServer):
    pairs = [*PAIRS, pb.TextPair(first="", second="x"), pb.TextPair(first="x", second="\0")]
    failure = await failure_of(encoder.stub.Score(pb.ScoreRequest(pairs=pairs)))
    assert failure.fields == [("pairs[3].first", "TEXT_EMPTY"), ("pairs[4].second", "TEXT_INVALID")]


async def test_a_model_of_the_wrong_kind_is_not_found(encoder: EncoderServer, models: ModelRegistry):
    request = pb.ScoreRequest(query="x", texts=["y"], model=models.bi_encoders[0].model.name)
    failure = await failure_of(encoder.stub.Score(request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert failure.message.startswith("no cross-encoder")


async def test_a_model_without_classifier_is_refused(encoder: EncoderServer, models: ModelRegistry):
    request = pb.ScoreRequest(
        query="x", texts=["y"], scorer=pb.SCORER_PAIR_CLASSIFIER, model=models.bi_encoders[0].model.name
    )
    failure = await failure_of(encoder.stub.Score(request))
    assert (failure.code, failure.fields) == (INVALID, [("model", "FIELD_INVALID")])


async def test_without_a_cross_encoder_none_is_found(models: ModelRegistry):
    async with serve_encoder(replace(models, cross_encoders=[])) as encoder:
        failure = await failure_of(encoder.stub.Score(pb.ScoreRequest(query="x", texts=["y"])))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    assert failure.message == "no cross-encoder is loaded; loaded: none"


async def test_get_models_lists_what_is_loaded(encoder: EncoderServer, models: ModelRegistry):
    response = await encoder.stub.GetModels(pb.GetModelsRequest())
    bi, cross = pb.MODEL_KIND_BI_ENCODER, pb.MODEL_KIND_CROSS_ENCODER
    assert [(model.kind, model.dimension, model.is_default) for model in response.models] == [
        (bi, 32, True),
        (bi, 32, False),
        (cross, 0, True),
    ]
    assert [model.has_pair_classifier for model in response.models] == [False, True, False]
    assert [model.max_tokens for model in response.models] == [64, 64, 128]
    assert {(model.dtype, model.device) for model in response.models} == {("float32", "cpu")}
    assert response.models[0].model_id == models.bi_encoders[0].model.model_id
    assert (response.limits.max_texts, response.limits.max_text_bytes) == (1024, 32_768)


LABELS = ("contradiction", "entailment", "neutral")


async def test_a_classifier_gives_the_probability_of_each_class(
    tmp_path: Path, model_directories: dict[str, Path]
):
    directory = make_tiny_cross_encoder(tmp_path / "nli", activation="Identity", labels=LABELS)
    settings = EncoderSettings(
        bi_encoder=str(model_directories["plain"]),
        cross_encoder=f"{model_directories['pairs']}, {directory}",
        device="cpu",
        dtype="float32",
        threads=1,
    )
    pairs = [(QUERY, text) for text in TEXTS]
    expected = CrossEncoder(str(directory), device="cpu").predict(pairs, apply_softmax=True)
    async with serve_encoder(load_models(settings).models) as encoder:
        listed = (await encoder.stub.GetModels(pb.GetModelsRequest())).models
        response = await encoder.stub.Score(pb.ScoreRequest(query=QUERY, texts=TEXTS, model=str(directory)))
        plain = await encoder.stub.Score(pb.ScoreRequest(query=QUERY, texts=TEXTS))
    assert [(tuple(model.labels), model.is_default) for model in listed[1:]] == [((), True), (LABELS, False)]
    assert tuple(response.labels) == LABELS
    found = np.array(response.class_scores).reshape(len(TEXTS), 3)
    assert found == pytest.approx(expected, abs=1e-4)
    assert list(response.scores) == pytest.approx(expected[:, 1], abs=1e-4)
    assert 1 / (1 + np.exp(-np.array(response.raw_scores))) == pytest.approx(expected[:, 1], abs=1e-4)
    assert (list(plain.labels), list(plain.class_scores)) == ([], [])


@pytest.mark.parametrize("scorer", pb.Scorer.values())
async def test_what_is_too_long_is_refused_if_asked(encoder: EncoderServer, scorer: int):
    texts = ["the cat", "cat " * 200]
    request = pb.ScoreRequest(query=QUERY, texts=texts, scorer=scorer, truncate=pb.TRUNCATION_ERROR)
    failure = await failure_of(encoder.stub.Score(request))
    assert (failure.code, failure.fields) == (INVALID, [("texts[1]", "TEXT_TOO_LARGE")])
    assert failure.descriptions[0].endswith(("the model reads 64", "the model reads 128"))


@pytest.mark.parametrize("scorer", pb.Scorer.values())
async def test_the_start_of_a_text_is_cut_if_asked(encoder: EncoderServer, scorer: int):
    texts = ["the dog " * 80 + "cat " * 200, "cat " * 200]
    request = pb.ScoreRequest(query=QUERY, texts=texts, scorer=scorer, truncate=pb.TRUNCATION_START)
    first, second = (await encoder.stub.Score(request)).scores
    assert first == pytest.approx(second, abs=1e-5)
