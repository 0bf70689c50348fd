from __future__ import annotations

import pytest

from textmatch.documents import Document, Passage
from textmatch.errors import InvalidInput
from textmatch.filters import FieldMatch, FieldRange, Filter
from textmatch.score_fusion import ScoreModel
from textmatch.types import (
    DegradedReason,
    Match,
    MatchedPassage,
    MatchOptions,
    MatchResult,
    Recall,
    Rerank,
    ScoreExplanation,
)
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire import matching


def test_defaults_are_filled_in():
    options = matching.options_from_proto(pb.MatchOptions())
    assert (options.top_k, options.candidate_count, options.rerank_depth) == (10, 100, 0)
    assert (options.recall, options.rerank) == (None, Rerank.AUTO)
    assert options.where is None
    assert matching.options_from_proto(pb.MatchOptions(top_k=300)).candidate_count == 300
    auto = pb.MatchOptions(rerank=pb.RERANK_MODE_AUTO)
    assert matching.options_from_proto(auto).rerank is Rerank.AUTO
    assert matching.options_from_proto(pb.MatchOptions(rerank=pb.RERANK_MODE_NONE)).rerank is Rerank.NONE
    assert matching.options_from_proto(pb.MatchOptions(recall=pb.RECALL_MODE_DENSE)).recall is Recall.DENSE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "options.top_k: is -1; it must be 1 to 1,000"),
        ({"top_k": 1001}, "options.top_k: is 1001; it must be 1 to 1,000"),
        (
            {"top_k": 20, "candidate_count": 10},
            "options.candidate_count: is 10; it must be 20 to 1,000",
        ),
        ({"candidate_count": 1001}, "options.candidate_count: is 1001; it must be 10 to 1,000"),
        ({"min_score": 1.5}, "options.min_score: is 1.5; it must be 0 to 1"),
        ({"min_score": float("nan")}, "options.min_score: is nan; it must be 0 to 1"),
        ({"recall": 9}, "options.recall: has the unknown value 9"),
        ({"rerank_depth": 101}, "options.rerank_depth: is 101; it must be 0 to 100"),
        ({"rerank": 77}, "options.rerank: has the unknown value 77"),
    ],
)
def test_a_bad_option_is_named_with_its_limit(options: dict[str, object], message: str):
    with pytest.raises(InvalidInput) as raised:
        matching.options_from_proto(pb.MatchOptions(**options))
    assert str(raised.value) == message


EXPLANATION = ScoreExplanation(
    cosine=-0.5,
    lexical=0.125,
    pair_classifier_score=0.25,
    weights=ScoreModel(-4.0, cosine=8.0, lexical=0.5, pair=0.25),
)


async def test_parts_that_were_not_asked_for_are_left_out():
    match = Match(Document("a", "text", {"k": 1}, 3), 0.5, 0.4, None)
    result = MatchResult("query", (match,), DegradedReason.RERANK_REFUSED)
    bare = await matching.result_to_proto(result, MatchOptions(omit_text=True, omit_attributes=True))
    assert (bare.matches[0].document.text, bare.matches[0].document.HasField("attributes")) == ("", False)
    full = await matching.result_to_proto(result, MatchOptions())
    assert full.matches[0].document.attributes.fields["k"].number_value == 1
    assert not full.matches[0].HasField("rerank_score")
    assert full.degraded == pb.DEGRADED_REASON_RERANK_REFUSED


async def test_an_answer_that_default_clients_do_not_accept_is_an_error():
    document = Document("a", "text" * 8_000)
    fitting = MatchResult("query", (Match(document, 0.5, 0.4, None),) * 124)
    assert (await matching.result_to_proto(fitting, MatchOptions())).ByteSize() > 3_900_000
    larger = MatchResult("query", (Match(document, 0.5, 0.4, None),) * 125)
    with pytest.raises(InvalidInput, match="top_k: is too large: 125 matches have 4,0"):
        await matching.result_to_proto(larger, MatchOptions())
    assert (await matching.result_to_proto(larger, MatchOptions(omit_text=True))).ByteSize() < 10_000


async def test_an_explanation_has_every_part_of_a_score():
    match = Match(Document("a", "text"), 0.5, 0.4, 0.75, EXPLANATION)
    result = MatchResult("query", (match,), recall=Recall.HYBRID, candidate_count=7, scored_count=1)
    assert not (await matching.result_to_proto(result, MatchOptions())).matches[0].HasField("explanation")
    response = await matching.result_to_proto(result, MatchOptions(explain=True))
    assert response.matches[0].explanation == pb.ScoreExplanation(
        cosine=-0.5,
        lexical=0.125,
        pair_classifier_score=0.25,
        weights=pb.ScoreWeights(intercept=-4.0, cosine=8.0, lexical=0.5, pair=0.25),
    )
    assert response.matches[0].rerank_score == 0.75
    assert (response.candidate_count, response.scored_count) == (7, 1)
    assert response.recall == pb.RECALL_MODE_HYBRID


async def test_options_and_results_survive_the_journey():
    options = MatchOptions(
        top_k=3,
        where=Filter(must=(FieldMatch("kind", ("a",)), Filter(should=(FieldRange("n", gt=1.0),)))),
        min_score=0.25,
        recall=Recall.HYBRID,
        rerank=Rerank.CASCADE,
        rerank_depth=7,
        explain=True,
        omit_text=True,
    )
    assert matching.options_from_proto(matching.options_to_proto(options)) == options
    bare = ScoreExplanation(None, None, None, ScoreModel(1.0))
    for explanation in (EXPLANATION, bare):
        match = Match(Document("a", "text", {"k": 1}, 3), 0.5, 0.25, 0.75, explanation)
        result = MatchResult("query", (match,), DegradedReason.RERANK_LATE, bi_encoder_model_id="m-1")
        message = await matching.result_to_proto(result, MatchOptions(explain=True))
        assert matching.result_from_proto("query", message) == result


async def test_a_passage_has_its_place_in_the_document():
    document = Document("a", "第二句。", version=1, passage=Passage(1, 4, 8))
    sent = MatchResult("q", (Match(document, 0.75, 0.5, None), Match(Document("b", "short"), 0.5, 0.5, None)))
    message = await matching.result_to_proto(sent, MatchOptions())
    assert [match.HasField("passage") for match in message.matches] == [True, False]
    assert message.matches[0].passage == pb.Passage(text="第二句。", start=4, end=8, number=1, score=0.75)
    received = matching.result_from_proto("q", message)
    assert [match.passage for match in received] == [
        MatchedPassage("第二句。", 4, 8, 1, 0.75),
        MatchedPassage("short", 0, 5, 0, 0.5),
    ]
    without_text = await matching.result_to_proto(sent, MatchOptions(omit_text=True))
    assert (without_text.matches[0].passage.text, without_text.matches[0].passage.end) == ("", 8)
