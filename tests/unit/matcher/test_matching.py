"""The order of the stages and what happens when one fails; the encoder and the index are scripted here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.matcher.matching import Degraded, Matcher, MatchOptions
from textmatch import errors
from textmatch.documents import Document
from textmatch.encoder_client import EncodeResult, ScoreResult
from textmatch.index.connection import CollectionGone
from textmatch.index.schema import Candidate

MODEL = "bi-000000000000"
COSINES = {"a": 0.9, "b": 0.8, "c": -0.2}


@dataclass
class ScriptedEncoder:
    scores: dict[str, float] = field(default_factory=lambda: {"text a": 0.1, "text b": 0.9, "text c": 0.3})
    encode_error: Exception | None = None
    score_error: Exception | None = None
    score_timeouts: list[float] = field(default_factory=list)
    served: tuple[str, ...] = (MODEL,)

    async def encode(self, texts, *, is_query, is_bulk, timeout_seconds, model):
        assert is_query
        if self.encode_error:
            raise self.encode_error
        if model and model not in self.served:
            raise errors.ModelMismatch(index_model_id=model, encoder_model_id=", ".join(self.served))
        return EncodeResult(np.ones((1, 2), dtype=np.float32), model or self.served[0], [3], [False])

    async def score(self, query, texts, *, is_bulk, timeout_seconds):
        self.score_timeouts.append(timeout_seconds)
        if self.score_error:
            raise self.score_error
        scores = [self.scores[text] for text in texts]
        return ScoreResult(scores, scores, [False] * len(texts), "cross-000000000000")


@dataclass
class ScriptedIndex:
    current: str = MODEL
    # What the alias was when it was read last.
    cached: str | None = None
    dropped: tuple[str, ...] = ()

    async def collection(self):
        return self.current if self.cached is None else self.cached

    async def refresh_collection(self):
        self.cached = None
        return self.current

    async def recall(self, embedding, count, condition, *, model_id):
        if model_id in self.dropped:
            self.cached = None
            raise CollectionGone(model_id)
        return [Candidate(Document(key, f"text {key}"), cosine) for key, cosine in COSINES.items()][:count]


def matcher(encoder: ScriptedEncoder, index: ScriptedIndex | None = None) -> Matcher:
    return Matcher(encoder, index or ScriptedIndex(), rerank_weight=0.5)


def soon(seconds: float = 1.0) -> float:
    return time.monotonic() + seconds


async def test_both_scores_are_combined_and_the_best_comes_first():
    result = await matcher(ScriptedEncoder()).match("query", MatchOptions(), deadline=soon())
    assert [(one.document.id, round(one.score, 3)) for one in result.matches] == [
        ("b", 0.85),
        ("a", 0.5),
        ("c", 0.15),
    ]
    assert result.matches[2].recall_score == 0.0
    assert result.degraded is None
    assert (result.bi_encoder_model_id, result.cross_encoder_model_id) == (MODEL, "cross-000000000000")


async def test_top_k_and_min_score_cut_after_scoring():
    options = MatchOptions(top_k=2, min_score=0.6)
    result = await matcher(ScriptedEncoder()).match("query", options, deadline=soon())
    assert [one.document.id for one in result.matches] == ["b"]


async def test_without_rerank_the_recall_score_is_the_score():
    encoder = ScriptedEncoder()
    result = await matcher(encoder).match("query", MatchOptions(rerank=False), deadline=soon())
    assert [one.document.id for one in result.matches] == ["a", "b", "c"]
    assert result.matches[0].rerank_score is None
    assert encoder.score_timeouts == []
    assert (result.degraded, result.cross_encoder_model_id) == (None, "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.DeadlinePassed("late"), Degraded.RERANK_LATE),
        (errors.Overloaded("full"), Degraded.RERANK_REFUSED),
        (errors.DeadlineTooShort("full"), Degraded.RERANK_REFUSED),
        (errors.DependencyUnavailable("gone"), Degraded.RERANK_UNAVAILABLE),
        (errors.NotReady("loading"), Degraded.RERANK_UNAVAILABLE),
        (errors.ModelNotFound("no cross-encoder"), Degraded.RERANK_UNAVAILABLE),
        (errors.InternalError("bug"), Degraded.RERANK_UNAVAILABLE),
    ],
)
async def test_when_scoring_fails_the_answer_is_degraded_to_recall_order(error: Exception, reason: Degraded):
    result = await matcher(ScriptedEncoder(score_error=error)).match("query", MatchOptions(), deadline=soon())
    assert [one.document.id for one in result.matches] == ["a", "b", "c"]
    assert result.degraded is reason


async def test_scoring_leaves_time_for_the_answer():
    encoder = ScriptedEncoder()
    await matcher(encoder).match("query", MatchOptions(), deadline=soon(1.0))
    assert 0.5 < encoder.score_timeouts[0] <= 0.95


async def test_without_time_left_scoring_is_not_tried():
    encoder = ScriptedEncoder()
    result = await matcher(encoder).match("query", MatchOptions(), deadline=soon(0.005))
    assert encoder.score_timeouts == []
    assert result.degraded is Degraded.RERANK_LATE


@pytest.mark.parametrize("error", [errors.DependencyUnavailable("gone"), errors.Overloaded("full")])
async def test_a_query_that_cannot_be_embedded_fails(error: errors.TextMatchError):
    with pytest.raises(type(error)):
        await matcher(ScriptedEncoder(encode_error=error)).match("query", MatchOptions(), deadline=soon())


async def test_an_index_of_another_model_is_a_mismatch():
    with pytest.raises(errors.ModelMismatch, match="other-1.*bi-0"):
        await matcher(ScriptedEncoder(), ScriptedIndex("other-1")).match("q", MatchOptions(), deadline=soon())


async def test_an_empty_index_has_no_matches():
    result = await matcher(ScriptedEncoder(), ScriptedIndex("")).match("q", MatchOptions(), deadline=soon())
    assert (result.matches, result.degraded) == ([], None)


async def test_the_query_is_embedded_by_the_model_that_built_the_index():
    encoder = ScriptedEncoder(served=("other-000000000000", MODEL))
    result = await matcher(encoder).match("query", MatchOptions(), deadline=soon())
    assert result.bi_encoder_model_id == MODEL
    assert len(result.matches) == 3


@pytest.mark.parametrize(
    ("encoder", "index"),
    [
        (ScriptedEncoder(), ScriptedIndex(cached="old-000000000000")),
        (
            ScriptedEncoder(served=("old-000000000000", MODEL)),
            ScriptedIndex(cached="old-000000000000", dropped=("old-000000000000",)),
        ),
    ],
    ids=["the old model is not served any more", "the old collection is dropped"],
)
async def test_a_switch_of_the_alias_between_two_readings_is_followed(
    encoder: ScriptedEncoder, index: ScriptedIndex
):
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
    assert result.bi_encoder_model_id == MODEL
    assert len(result.matches) == 3
