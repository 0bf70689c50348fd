"""Which candidates get pair scores, and when the rest of them cannot change the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.matcher.ranking import Candidate, QueryPart, RerankRule, Shortlist, combine, ranked
from tests.unit.matcher.scripted import FUSION, ScriptedEncoder, ScriptedIndex, matcher, soon
from textmatch import errors
from textmatch.documents import Document, Passage, passage_point_id, point_id
from textmatch.index.search import Hit
from textmatch.score_fusion import FUSION_NOTE, NEVER, Fusion, ScoreModel, probability, to_mapping
from textmatch.types import DegradedReason, Match, MatchOptions, MatchResult, Rerank
from textmatch.wire.matching import options_from_proto, options_to_proto, result_from_proto, result_to_proto

AUTO = MatchOptions()
# The pair score counts at most 0.5 * 8 in the log odds.
WITH_PAIRS = replace(FUSION, pair_from=0.85, pair_depth=20)
WEIGHTS = st.floats(0, 3)
FUSIONS = st.builds(
    lambda cosine, pair, intercept, pair_from, depth: Fusion(
        cosine=ScoreModel(0.0, cosine=cosine),
        lexical=ScoreModel(-1.0, lexical=1.0),
        cosine_lexical=ScoreModel(0.0, cosine=cosine, lexical=1.0),
        cosine_pair=ScoreModel(intercept, cosine=cosine, pair=pair),
        cosine_lexical_pair=ScoreModel(intercept, cosine=cosine, lexical=1.0, pair=pair),
        pair_from=pair_from,
        pair_depth=depth,
    ),
    WEIGHTS,
    WEIGHTS,
    st.floats(-3, 3),
    st.floats(-1, 1),
    st.integers(1, 40),
)


def rule(fusion: Fusion = WITH_PAIRS, default_depth: int = 40, **options: object) -> RerankRule:
    return RerankRule.of(MatchOptions(**options), default_depth, fusion)


def of_query(hits: Sequence[Hit]) -> list[tuple[QueryPart, Hit]]:
    return [(QueryPart("query"), hit) for hit in hits]


def candidates(cosines: Sequence[float], fusion: Fusion = WITH_PAIRS) -> list[Candidate]:
    hits = [Hit(f"d{number:02}", cosine, None) for number, cosine in enumerate(cosines)]
    return ranked(of_query(hits), fusion)


def listed(rule: RerankRule, found: Sequence[Candidate]) -> Shortlist:
    """All candidates that can be returned are still stored."""
    return Shortlist(
        rule,
        [(one, Document(str(one.hit.point), f"text {one.hit.point}")) for one in rule.shortlisted(found)],
    )


def selected(rule: RerankRule, found: Sequence[Candidate]) -> list[str]:
    return [str(one.hit.point) for one in rule.shortlisted(found) if one.is_selected]


def answer(rule: RerankRule, found: Shortlist) -> list[Match]:
    matches = combine(found.found, rule.fusion)
    return [match for match in matches if match.score >= rule.min_score][: rule.top_k]


def test_candidates_that_look_nearly_the_same_are_selected():
    found = candidates([0.95, 0.9, 0.85, 0.84, 0.2])
    assert selected(rule(), found) == ["d00", "d01", "d02"]
    assert selected(rule(replace(WITH_PAIRS, pair_depth=2)), found) == ["d00", "d01"]
    assert selected(rule(replace(WITH_PAIRS, pair_from=NEVER)), candidates([1.0, 1.0])) == []
    assert selected(rule(rerank=Rerank.NONE), found) == []


def test_the_depth_of_the_server_and_of_the_options_are_limits():
    found = candidates([0.95] * 30)
    assert len(selected(rule(), found)) == 20
    assert len(selected(rule(default_depth=5), found)) == 5
    assert len(selected(rule(rerank_depth=3), found)) == 3
    always = {"rerank": Rerank.CROSS_ENCODER}
    assert len(selected(rule(rerank_depth=3, top_k=7, **always), found)) == 7
    assert len(selected(rule(default_depth=25, **always), found)) == 25


def test_with_a_threshold_those_that_may_end_on_either_side_are_selected():
    found = candidates([0.8, 0.5, -0.9])
    # The log odds with a pair score are -4 to 4 around the cosine.
    assert selected(rule(min_score=probability(4.4)), found) == ["d00", "d01"]
    assert selected(rule(min_score=probability(-3.4)), found) == ["d01", "d02"]
    assert selected(rule(min_score=0.999), found) == []
    weightless = replace(WITH_PAIRS, cosine_pair=ScoreModel(0.0, cosine=1.0))
    assert selected(rule(weightless, min_score=0.6), found) == []


def test_as_many_others_as_matches_can_be_returned():
    found = candidates([0.9, 0.8, 0.7, 0.6])
    chosen = rule(top_k=2).shortlisted(found)
    assert [(one.hit.point, one.is_selected) for one in chosen] == [
        ("d00", True),
        ("d01", False),
        ("d02", False),
    ]
    always = rule(top_k=2, rerank=Rerank.CROSS_ENCODER, rerank_depth=3).shortlisted(found)
    assert [one.is_selected for one in always] == [True, True, True]


def test_a_candidate_that_cannot_enter_is_not_requested():
    # The log odds are 90, 88 and 50; a pair score changes them by 4 at most.
    steep = replace(
        WITH_PAIRS,
        pair_from=0.0,
        cosine=ScoreModel(0.0, cosine=100.0),
        cosine_pair=ScoreModel(0.0, cosine=100.0, pair=0.5),
    )
    found = listed(rule(steep, top_k=1), candidates([0.9, 0.88, 0.5], steep))
    assert found.to_score() == [0, 1]
    found.record([0, 1], [0.5, 0.4])
    assert found.to_score() == found.undecided() == []
    always = listed(rule(steep, top_k=1, rerank=Rerank.CROSS_ENCODER), candidates([0.9, 0.88, 0.5], steep))
    assert (always.to_score(), always.undecided()) == ([0, 1, 2], [0, 1])


@given(
    FUSIONS,
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
def test_stopping_early_gives_the_same_answer_as_scoring_all_that_are_selected(
    fusion: Fusion, given_: list[tuple[float, float]], top_k: int, min_score: float
):
    pairs = {f"d{number:02}": pair for number, (_, pair) in enumerate(given_)}
    one = rule(fusion, top_k=top_k, min_score=min_score)
    found = candidates([cosine for cosine, _ in given_], fusion)
    early, whole = listed(one, found), listed(one, found)

    def score(shortlist: Shortlist, positions: Sequence[int]) -> None:
        points = [str(shortlist.found[position][0].hit.point) for position in positions]
        shortlist.record(positions, [pairs[point] for point in points])

    while positions := early.to_score():
        score(early, positions)
    score(whole, [position for position, (two, _) in enumerate(whole.found) if two.is_selected])
    assert early.undecided() == whole.undecided() == []
    assert answer(one, early) == answer(one, whole)


LOOKALIKES = {"a": 0.9, "b": 0.88, "c": 0.3}


async def asked(
    encoder: ScriptedEncoder, options: MatchOptions = AUTO, fusion: Fusion = WITH_PAIRS
) -> MatchResult:
    index = ScriptedIndex(cosines=dict(LOOKALIKES), notes={FUSION_NOTE: to_mapping(fusion)})
    return await matcher(encoder, index).match("query", options, deadline=soon(5.0))


async def test_scored_and_unscored_matches_are_sorted_together():
    encoder = ScriptedEncoder(scores={"text a": 0.01, "text b": 0.9})
    result = await asked(encoder)
    assert encoder.scored == [["text a", "text b"]]
    assert [(one.document.id, one.rerank_score) for one in result] == [("b", 0.9), ("c", None), ("a", 0.01)]
    assert (result.scored_count, result.degraded) == (2, None)


async def test_where_nothing_is_selected_the_encoder_is_not_asked():
    far = replace(WITH_PAIRS, pair_from=0.95)
    encoder = ScriptedEncoder(score_error=errors.DependencyUnavailable("gone"))
    result = await asked(encoder, fusion=far)
    assert encoder.score_timeouts == []
    assert (result.degraded, result.scored_count, result.cross_encoder_model_id) == (None, 0, None)
    assert [one.document.id for one in result] == ["a", "b", "c"]


@pytest.mark.parametrize("rerank", [Rerank.AUTO, Rerank.CROSS_ENCODER])
async def test_an_answer_is_degraded_only_if_what_is_missing_could_have_changed_it(rerank: Rerank):
    def broken() -> ScriptedEncoder:
        return ScriptedEncoder(score_error=errors.DependencyUnavailable("gone"))

    result = await asked(broken(), MatchOptions(rerank=rerank))
    assert result.degraded is DegradedReason.RERANK_UNAVAILABLE
    # No pair score lifts a candidate to this threshold.
    result = await asked(broken(), MatchOptions(rerank=rerank, min_score=0.9999))
    assert (result.degraded, result.matches) == (None, ())


async def test_missing_scores_of_candidates_that_cannot_enter_do_not_degrade_the_answer():
    steep = replace(
        WITH_PAIRS,
        pair_from=0.0,
        cosine=ScoreModel(0.0, cosine=50.0),
        cosine_pair=ScoreModel(0.0, cosine=50.0, pair=0.5),
    )
    index = ScriptedIndex(
        cosines={f"d{number:02}": 0.9 - number / 40 for number in range(12)},
        notes={FUSION_NOTE: to_mapping(steep)},
    )
    for top_k, degraded in ((1, None), (8, DegradedReason.RERANK_LATE)):
        options = MatchOptions(top_k=top_k, rerank=Rerank.CROSS_ENCODER)
        encoder = ScriptedEncoder(score_error=errors.DeadlinePassed("late"), good_chunks=1)
        result = await matcher(encoder, index).match("query", options, deadline=soon(1.9))
        assert (result.scored_count, result.degraded) == (8, degraded)


@settings(deadline=None, max_examples=50)
@given(FUSIONS, st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=10))
def test_the_score_of_a_match_as_min_score_keeps_the_match(fusion: Fusion, given_: list[tuple[float, float]]):
    """Scores and min_score travel in single precision."""
    pairs = {f"d{number:02}": pair for number, (_, pair) in enumerate(given_)}
    for rerank in (Rerank.NONE, Rerank.CROSS_ENCODER, Rerank.AUTO):

        def matches(options: MatchOptions) -> list[Match]:
            received = options_from_proto(options_to_proto(options))
            one = RerankRule.of(received, 40, fusion)
            found = listed(one, candidates([cosine for cosine, _ in given_], fusion))
            while options.rerank is not Rerank.NONE and (positions := found.to_score()):
                found.record(positions, [pairs[found.found[at][1].id] for at in positions])
            result = MatchResult("query", tuple(answer(one, found)))
            sent = asyncio.run(result_to_proto(result, received))
            return list(result_from_proto("query", sent))

        for match in matches(MatchOptions(rerank=rerank)):
            kept = matches(MatchOptions(rerank=rerank, min_score=match.score))
            assert match.document.id in [one.document.id for one in kept]


def grouped(
    cosines: Sequence[float], groups: Sequence[str | None], fusion: Fusion = WITH_PAIRS
) -> list[Candidate]:
    hits = [
        Hit(f"d{number:02}", cosine, None, group=group)
        for number, (cosine, group) in enumerate(zip(cosines, groups, strict=True))
    ]
    return ranked(of_query(hits), fusion)


def test_of_the_others_the_best_of_each_group_can_be_returned():
    found = grouped([0.5, 0.4, 0.3, 0.2, 0.1], ["a", "a", None, None, "b"])
    chosen = rule(rerank=Rerank.NONE, top_k=4).shortlisted(found)
    assert [one.hit.point for one in chosen] == ["d00", "d02", "d03", "d04"]
    assert [one.hit.point for one in rule(rerank=Rerank.NONE, top_k=2).shortlisted(found)] == ["d00", "d02"]


def test_beyond_the_depth_the_best_of_further_groups_are_scored_until_there_are_enough():
    found = grouped([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], ["a", "a", "a", "b", "b", "c"])
    always = {"rerank": Rerank.CROSS_ENCODER, "rerank_depth": 2}
    assert selected(rule(top_k=1, **always), found) == ["d00", "d01"]
    assert selected(rule(top_k=2, **always), found) == ["d00", "d01", "d03"]
    assert selected(rule(top_k=3, rerank=Rerank.CROSS_ENCODER, rerank_depth=3), found) == [
        "d00",
        "d01",
        "d02",
        "d03",
        "d05",
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.sampled_from(["a", "b", "c", None]), st.floats(0, 1)), max_size=25
    ),
    FUSIONS,
    st.integers(1, 5),
    st.floats(0, 0.9),
)
def test_groups_are_as_if_all_selected_candidates_had_been_scored(
    given_candidates: list[tuple[float, str | None, float]], fusion: Fusion, top_k: int, min_score: float
):
    cosines, groups, scores = zip(*given_candidates, strict=True) if given_candidates else ((), (), ())
    found = grouped(cosines, groups, fusion)
    auto = rule(fusion, top_k=top_k, min_score=min_score)
    by_point = {f"d{number:02}": score for number, score in enumerate(scores)}

    def scored(shortlist: Shortlist, *, is_lazy: bool) -> list[Match]:
        while positions := shortlist.to_score() if is_lazy else shortlist._unscored():
            shortlist.record(
                positions, [by_point[str(shortlist.found[one][0].hit.point)] for one in positions]
            )
        return answer(auto, shortlist)

    lazy = scored(listed(auto, found), is_lazy=True)
    # All that the rule selects, and all others.
    everything = [
        replace(one, is_selected=position < auto.depth and auto.selects(one.parts))
        for position, one in enumerate(found)
    ]
    whole = Shortlist(auto, [(one, Document(str(one.hit.point), "text")) for one in everything])
    assert [one.document.id for one in lazy] == [one.document.id for one in scored(whole, is_lazy=False)]


def test_a_document_is_one_candidate_with_the_score_of_its_best_passage():
    a, b = point_id("a"), point_id("b")
    passages = [passage_point_id("a", 1, "hash", number) for number in (1, 2)]
    hits = [Hit(a, 0.3), Hit(passages[0], 0.9), Hit(b, 0.8), Hit(passages[1], 0.5)]
    found = ranked(of_query(hits), WITH_PAIRS)
    assert [(one.hit.point, one.parts.cosine) for one in found] == [(passages[0], 0.9), (b, 0.8)]


def test_pairs_of_one_call_have_the_same_passage_of_the_query():
    parts = [QueryPart("first part", Passage(0, 0, 10)), QueryPart("second part", Passage(1, 11, 22))]
    hits = [(parts[number % 2], Hit(f"d{number}", 0.9 - number / 100)) for number in range(5)]
    every = rule(rerank=Rerank.CROSS_ENCODER)
    shortlist = listed(every, ranked(hits, every.fusion))
    calls: list[tuple[str, list[int]]] = []
    while positions := shortlist.to_score():
        calls.append((shortlist.query(positions), positions))
        shortlist.record(positions, [0.5] * len(positions))
    assert calls == [("first part", [0, 2, 4]), ("second part", [1, 3])]


def test_a_document_has_the_score_of_the_passage_of_the_query_that_fits_it_best():
    parts = [QueryPart("first part", Passage(0, 0, 10)), QueryPart("second part", Passage(1, 11, 22))]
    hits = [(parts[0], Hit("d", 0.3)), (parts[1], Hit("d", 0.8)), (parts[0], Hit("e", 0.5))]
    found = ranked(hits, WITH_PAIRS)
    assert [(one.hit.point, one.query) for one in found] == [("d", parts[1]), ("e", parts[0])]


def test_a_passage_is_scored_with_the_title_of_its_document():
    title = {"title": "The title"}
    passage = Document("d0", "a passage", title, passage=Passage(1, 10, 19))
    whole = Document("d1", "a whole text", title)
    found = list(zip(candidates([0.9, 0.8]), [passage, whole], strict=True))
    shortlist = Shortlist(rule(), found)
    assert shortlist.texts([0, 1]) == ["The title\na passage", "a whole text"]
