"""With AUTO, the encoder scores pairs only if a stored text looks nearly the same as the query."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.integration.matcher.parts import (
    DOCUMENTS,
    EncoderProcess,
    Outcome,
    RunningMatcher,
    running_matcher,
)
from textmatch.index.index import Index
from textmatch.score_fusion import FUSION_NOTE, ScoreModel, default_fusion, to_mapping
from textmatch.v1 import matcher_service_pb2 as pb

SAME = DOCUMENTS[7].text
FAR = "runs"


async def test_pairs_are_scored_where_texts_look_nearly_the_same(encoder: EncoderProcess, filled: Index):
    collection = await filled.refresh_model_in_use()
    default = default_fusion(collection)
    paired = ScoreModel(-8.6, cosine=10.1, lexical=14.8, pair=0.5)
    # Only the text itself is as near as that.
    fusion = replace(default, cosine_lexical_pair=paired, pair_from=0.99999)
    await filled.collections.note(collection, {FUSION_NOTE: to_mapping(fusion)})

    async with running_matcher(encoder, filled) as matcher:

        async def auto(query: str) -> Outcome:
            return await matcher.match(query, 20.0, rerank=pb.RERANK_MODE_UNSPECIFIED)

        same = (await auto(SAME)).answer
        assert (same.degraded, same.scored_count, len(same.matches)) == (0, 1, 10)
        assert same.cross_encoder_model_id
        assert [one.document.id for one in same.matches if one.HasField("rerank_score")] == ["d7"]

        await matcher.match(FAR, 20.0)
        encoder.kill()
        far = (await auto(FAR)).answer
        assert (far.degraded, far.scored_count, far.cross_encoder_model_id) == (0, 0, "")
        assert len(far.matches) == 10
        assert (await auto(SAME)).answer.degraded == pb.DEGRADED_REASON_RERANK_UNAVAILABLE


@pytest.mark.parametrize("rerank", [pb.RERANK_MODE_NONE, pb.RERANK_MODE_CROSS_ENCODER, pb.RERANK_MODE_AUTO])
async def test_the_score_of_a_match_as_min_score_keeps_the_match(
    matcher: RunningMatcher, rerank: pb.RerankMode.ValueType
):
    for number in range(6):
        query = f"the cat number {number} sleeps"
        for match in (await matcher.match(query, 20.0, rerank=rerank)).answer.matches:
            kept = await matcher.match(query, 20.0, rerank=rerank, min_score=match.score)
            assert match.document.id in kept.ids
