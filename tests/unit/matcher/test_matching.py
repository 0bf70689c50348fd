"""The order of the stages and what happens when one fails; the encoder and the index are scripted here."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.matcher.answers import Degraded, MatchOptions, Recall, Rerank
from services.matcher.embedding_cache import EmbeddingCache
from services.matcher.matching import WEIGHTS_NOTE, Matcher
from services.matcher.recalling import Recaller
from services.matcher.reranking import Reranker
from textmatch import errors
from textmatch.combination import Calibration, Weights, to_mapping
from textmatch.documents import Document
from textmatch.encoder_client import EncodeResult, ScoreResult
from textmatch.index.connection import CollectionGone
from textmatch.index.recall import Hit
from textmatch.index.traits import CollectionTraits

MODEL = "bi-000000000000"
COSINES = {"a": 0.9, "b": 0.8, "c": -0.2}


@dataclass
class ScriptedEncoder:
    scores: dict[str, float] = field(default_factory=lambda: {"text a": 0.1, "text b": 0.9, "text c": 0.3})
    encode_error: Exception | None = None
    score_error: Exception | None = None
    score_timeouts: list[float] = field(default_factory=list)
    scored: list[list[str]] = field(default_factory=list)
    served: tuple[str, ...] = (MODEL,)
    encode_count: int = 0
    encode_gate: asyncio.Event | None = None
    # Each chunk after so many fails with `score_error`.
    good_chunks: int = 0
    classes: list[float] = field(default_factory=lambda: [0.2, 0.9, 0.5])

    async def encode(self, texts, *, is_query, is_bulk, timeout_seconds, model):
        assert is_query
        self.encode_count += 1
        if self.encode_gate:
            await self.encode_gate.wait()
        if self.encode_error:
            raise self.encode_error
        if model and model not in self.served:
            raise errors.ModelMismatch(index_model_id=model, encoder_model_id=", ".join(self.served))
        return EncodeResult(np.ones((1, 2), dtype=np.float32), model or self.served[0], [3], [False])

    async def score(self, query, texts, *, is_bulk, timeout_seconds):
        self.score_timeouts.append(timeout_seconds)
        if self.score_error and len(self.scored) >= self.good_chunks:
            raise self.score_error
        self.scored.append(list(texts))
        scores = [self.scores.get(text, 0.5) for text in texts]
        return ScoreResult(scores, scores, [False] * len(texts), "cross-000000000000")

    async def classify(self, query, embeddings, *, is_bulk, timeout_seconds, model):
        assert (model, embeddings.shape) == (MODEL, (3, 2))
        if self.score_error:
            raise self.score_error
        return ScoreResult(self.classes, self.classes, [False] * 3, MODEL)


@dataclass
class ScriptedIndex:
    current: str = MODEL
    # What the alias was when it was read last.
    cached: str | None = None
    dropped: tuple[str, ...] = ()
    cosines: dict[str, float] = field(default_factory=lambda: dict(COSINES))
    bm25: dict[str, float] | None = None
    notes: dict[str, object] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()

    async def collection(self):
        return self.current if self.cached is None else self.cached

    async def refresh_collection(self):
        self.cached = None
        return self.current

    async def traits(self, collection):
        if collection in self.dropped:
            self.cached = None
            raise CollectionGone(collection)
        return CollectionTraits(self.bm25 is not None, self.notes)

    async def recall(self, query, *, model_id):
        if query.embedding is None:
            return [Hit(key, 0.0, score) for key, score in self.bm25.items()]
        return [
            Hit(key, cosine, self.bm25.get(key, 0.0) if self.bm25 is not None and query.text else None)
            for key, cosine in self.cosines.items()
        ][: query.count]

    async def documents(self, points, *, model_id):
        return {key: Document(key, f"text {key}") for key in points if key not in self.deleted}

    async def embeddings(self, points, *, model_id):
        return {key: np.ones(2, dtype=np.float32) for key in points if key not in self.deleted}


def matcher(encoder: ScriptedEncoder, index: ScriptedIndex | None = None, depth: int = 40) -> Matcher:
    index = index or ScriptedIndex()
    recaller = Recaller(encoder, index, EmbeddingCache(10))
    return Matcher(recaller, Reranker(encoder), index, Weights(lexical=0.5, rerank=0.5), depth)


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
    result = await matcher(encoder).match("query", MatchOptions(rerank=Rerank.NONE), deadline=soon())
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


async def test_shared_words_raise_the_recall_score():
    index = ScriptedIndex(bm25={"b": 30.0})
    options = MatchOptions(rerank=Rerank.NONE)
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert [(one.document.id, round(one.score, 3)) for one in result.matches] == [
        ("a", 0.9),
        ("b", 0.9),
        ("c", 0.0),
    ]
    assert result.recall is Recall.HYBRID
    dense = MatchOptions(rerank=Rerank.NONE, recall=Recall.DENSE)
    result = await matcher(ScriptedEncoder(), index).match("query", dense, deadline=soon())
    assert [round(one.score, 3) for one in result.matches] == [0.9, 0.8, 0.0]
    assert result.recall is Recall.DENSE


async def test_hybrid_recall_needs_a_collection_that_has_bm25():
    for recall in (Recall.HYBRID, Recall.HYBRID_RRF):
        with pytest.raises(errors.LexicalIndexMissing, match=f"{MODEL} was made without.*reindex"):
            await matcher(ScriptedEncoder()).match("q", MatchOptions(recall=recall), deadline=soon())


@pytest.mark.parametrize(
    "error", [errors.DeadlinePassed("late"), errors.DeadlineTooShort("busy"), errors.Overloaded("full")]
)
async def test_words_alone_answer_when_the_query_is_not_embedded_in_time(error: errors.TextMatchError):
    encoder = ScriptedEncoder(encode_error=error)
    index = ScriptedIndex(bm25={"c": 30.0, "b": 15.0})
    result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
    assert [(one.document.id, round(one.score, 4)) for one in result.matches] == [("c", 0.5), ("b", 0.125)]
    assert (result.degraded, encoder.scored) == (Degraded.ENCODE_LATE, [])
    with pytest.raises(type(error)):
        await matcher(encoder, index).match("q", MatchOptions(recall=Recall.DENSE), deadline=soon())


async def test_what_was_scored_before_time_ran_out_counts():
    index = ScriptedIndex(cosines={f"d{number:02}": 0.9 - number / 100 for number in range(12)})
    scores = {f"text d{number:02}": 0.1 for number in range(8)} | {"text d07": 1.0}
    encoder = ScriptedEncoder(scores=scores, score_error=errors.DeadlinePassed("late"), good_chunks=1)
    result = await matcher(encoder, index).match("query", MatchOptions(top_k=12), deadline=soon(1.0))
    assert encoder.scored == [[f"text d{number:02}" for number in range(8)]]
    assert (result.degraded, result.scored_count, result.candidate_count) == (Degraded.RERANK_LATE, 8, 12)
    assert result.matches[0].document.id == "d07"
    by_id = {one.document.id: one for one in result.matches}
    assert by_id["d08"].rerank_score is None
    raised = [by_id[f"d{number:02}"].score - by_id[f"d{number:02}"].recall_score for number in range(8)]
    assert by_id["d08"].score - by_id["d08"].recall_score == pytest.approx(sum(raised) / 8)


async def test_only_the_best_candidates_are_scored_and_returned():
    index = ScriptedIndex(cosines={f"d{number:02}": 0.9 - number / 100 for number in range(30)})
    encoder = ScriptedEncoder()
    result = await matcher(encoder, index, depth=5).match("q", MatchOptions(top_k=2), deadline=soon(10))
    assert (result.scored_count, result.candidate_count, len(result.matches)) == (5, 30, 2)
    await matcher(encoder, index).match("q", MatchOptions(rerank_depth=12), deadline=soon(10))
    await matcher(encoder, index).match("q", MatchOptions(top_k=20, rerank_depth=3), deadline=soon(10))
    assert [len(chunk) for chunk in encoder.scored] == [5, 12, 20]


async def test_in_a_cascade_the_pair_classifier_chooses_what_is_scored():
    encoder = ScriptedEncoder()
    options = MatchOptions(top_k=1, rerank=Rerank.CASCADE, rerank_depth=2)
    result = await matcher(encoder).match("query", options, deadline=soon())
    assert encoder.scored == [["text b", "text c"]]
    assert result.matches[0].pair_classifier_score == 0.9


async def test_a_late_classifier_leaves_the_order_of_recall():
    encoder = ScriptedEncoder(score_error=errors.DeadlinePassed("late"))
    options = MatchOptions(top_k=2, rerank=Rerank.CASCADE, rerank_depth=2)
    result = await matcher(encoder).match("query", options, deadline=soon())
    assert [one.document.id for one in result.matches] == ["a", "b"]
    assert result.degraded is Degraded.RERANK_LATE


async def test_a_bi_encoder_without_classifier_is_the_callers_mistake():
    encoder = ScriptedEncoder(score_error=errors.InvalidInput.of_field("scorer", "has no classifier"))
    options = MatchOptions(top_k=1, rerank=Rerank.CASCADE, rerank_depth=1)
    with pytest.raises(errors.InvalidInput, match="has no classifier"):
        await matcher(encoder).match("query", options, deadline=soon())


@pytest.mark.parametrize("rerank", [Rerank.CROSS_ENCODER, Rerank.CASCADE, Rerank.NONE])
async def test_what_is_deleted_between_recall_and_scoring_is_left_out(rerank: Rerank):
    index = ScriptedIndex(deleted=("b",))
    encoder = ScriptedEncoder(classes=[0.5, 0.5])
    result = await matcher(encoder, index).match("query", MatchOptions(rerank=rerank), deadline=soon())
    assert sorted(one.document.id for one in result.matches) == ["a", "c"]
    assert result.degraded is None


async def test_weights_tuned_for_the_collection_are_used():
    weights = Weights(lexical=0.0, rerank=1.0, calibration=Calibration(slope=10.0, intercept=-5.0))
    index = ScriptedIndex(notes={WEIGHTS_NOTE: to_mapping(weights)})
    options = MatchOptions(min_score=0.5)
    result = await matcher(ScriptedEncoder(), index).match("query", options, deadline=soon())
    assert [(one.document.id, round(one.score, 3)) for one in result.matches] == [("b", 0.982)]
    assert result.matches[0].combined_score == pytest.approx(0.9)
    assert result.weights == weights


async def test_weights_that_make_no_sense_are_not_used():
    index = ScriptedIndex(notes={WEIGHTS_NOTE: {"lexical": 7}})
    result = await matcher(ScriptedEncoder(), index).match("query", MatchOptions(), deadline=soon())
    assert result.weights == Weights(lexical=0.5, rerank=0.5)


async def test_equal_scores_are_in_an_order_that_is_always_the_same():
    for order in ("cab", "bca", "abc"):
        index = ScriptedIndex(cosines=dict.fromkeys(order, 0.5))
        encoder = ScriptedEncoder(scores={})
        result = await matcher(encoder, index).match("query", MatchOptions(), deadline=soon())
        assert [one.document.id for one in result.matches] == ["a", "b", "c"]


async def test_identical_queries_at_one_time_are_answered_once():
    encoder = ScriptedEncoder(encode_gate=asyncio.Event())
    shared = matcher(encoder)
    deadline = soon(5)
    calls = [
        asyncio.create_task(shared.match("query", MatchOptions(), deadline=deadline + number / 1e3))
        for number in range(4)
    ]
    other = asyncio.create_task(shared.match("query", MatchOptions(top_k=1), deadline=deadline))
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.sleep(0)
    encoder.encode_gate.set()
    results = await asyncio.gather(*calls[1:], other)
    assert [len(result.matches) for result in results] == [3, 3, 3, 1]
    assert calls[0].cancelled()
    assert encoder.encode_count == 2


async def test_a_query_that_everybody_left_is_given_up():
    encoder = ScriptedEncoder(encode_gate=asyncio.Event())
    shared = matcher(encoder)
    call = asyncio.create_task(shared.match("query", MatchOptions(), deadline=soon()))
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0.01)
    encoder.encode_gate.set()
    await asyncio.sleep(0.01)
    assert encoder.scored == []
    await shared.match("query", MatchOptions(), deadline=soon())
    assert encoder.encode_count == 2


async def test_a_caller_with_less_time_does_not_wait_for_one_with_more():
    encoder = ScriptedEncoder(encode_gate=asyncio.Event())
    shared = matcher(encoder)
    calls = [
        asyncio.create_task(shared.match("query", MatchOptions(), deadline=soon(seconds)))
        for seconds in (10.0, 1.0, 30.0)
    ]
    await asyncio.sleep(0.01)
    encoder.encode_gate.set()
    await asyncio.gather(*calls)
    assert encoder.encode_count == 3


async def test_a_query_asked_again_is_not_embedded_again():
    encoder = ScriptedEncoder()
    same = matcher(encoder)
    for top_k in (1, 2, 3):
        result = await same.match("query", MatchOptions(top_k=top_k), deadline=soon())
        assert result.bi_encoder_model_id == MODEL
    await same.match("another query", MatchOptions(), deadline=soon())
    assert encoder.encode_count == 2


@dataclass
class RefusingEncoder(ScriptedEncoder):
    """Is full for the first calls."""

    refusals: int = 2

    async def score(self, query, texts, *, is_bulk, timeout_seconds):
        if self.refusals:
            self.refusals -= 1
            raise errors.Overloaded("full", retry_delay_seconds=0.01)
        return await super().score(query, texts, is_bulk=is_bulk, timeout_seconds=timeout_seconds)


async def test_bulk_work_comes_back_when_the_encoder_asks_it_to():
    busy = matcher(RefusingEncoder())
    result = await busy.match("query", MatchOptions(), deadline=soon(5), is_bulk=True)
    assert (result.degraded, result.scored_count) == (None, 3)
    result = await matcher(RefusingEncoder()).match("query", MatchOptions(), deadline=soon(5))
    assert (result.degraded, result.scored_count) == (Degraded.RERANK_REFUSED, 0)
