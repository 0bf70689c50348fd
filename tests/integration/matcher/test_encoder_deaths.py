"""The encoder is killed in the middle of many calls."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.integration.ingest.waiting import eventually
from tests.integration.matcher.parts import EncoderProcess, Outcome, RunningMatcher
from textmatch.errors import DeadlinePassed, DeadlineTooShort, DependencyUnavailable, NotReady
from textmatch.runtime.grpc_errors import from_status
from textmatch.v1 import matcher_service_pb2 as pb

TIMEOUTS_SECONDS = (0.1, 0.3, 1.0, 3.0)
QUERIES = 400
BATCH_SECONDS = 120.0


async def test_under_load_every_match_ends_before_its_deadline_whole_degraded_or_unavailable(
    matcher: RunningMatcher, encoder: EncoderProcess
):
    outcomes: list[tuple[float, Outcome]] = []
    is_over = asyncio.Event()

    async def call(caller: int) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            timeout_seconds = TIMEOUTS_SECONDS[number % len(TIMEOUTS_SECONDS)]
            # Two of three queries were sent before, and their embeddings are cached.
            query = f"cat number {caller}" if number % 3 else f"cat number {number} of {caller}"
            outcomes.append((timeout_seconds, await matcher.match(query, timeout_seconds)))
            await asyncio.sleep(0.01)

    async with asyncio.timeout(240), asyncio.TaskGroup() as callers:
        for caller in range(16):
            callers.create_task(call(caller))
        await many_more_are_whole(outcomes)
        for _ in range(2):
            encoder.kill()
            await asyncio.sleep(0.3)
            await asyncio.to_thread(encoder.start)
            await many_more_are_whole(outcomes)
        is_over.set()

    counts = Counter(kind(outcome) for _, outcome in outcomes)
    assert set(counts) <= {"whole", "degraded", "unavailable", "late"}, counts
    assert counts["unavailable"] > 0
    assert counts["degraded"] > 0
    # A busy machine may need a tenth of a second for anything, but not all the time of the patient.
    late = {timeout_seconds for timeout_seconds, outcome in outcomes if kind(outcome) == "late"}
    assert max(TIMEOUTS_SECONDS) not in late


async def many_more_are_whole(outcomes: list[tuple[float, Outcome]]) -> None:
    start = len(outcomes)

    async def are_there() -> bool:
        return sum(outcome.is_whole for _, outcome in outcomes[start:]) >= 100

    await eventually(are_there, "a hundred whole answers", seconds=60)


def kind(outcome: Outcome) -> str:
    if isinstance(outcome.result, pb.MatchResponse):
        return "degraded" if outcome.result.degraded else "whole"
    if isinstance(outcome.result, (DependencyUnavailable, NotReady)):
        return "unavailable"
    if isinstance(outcome.result, (DeadlinePassed, DeadlineTooShort)):
        return "late"
    return repr(outcome.result)


async def test_a_batch_in_the_middle_of_which_the_encoder_dies_has_a_result_or_an_error_for_each_query(
    matcher: RunningMatcher, encoder: EncoderProcess
):
    queries = [f"cat number {number}" for number in range(QUERIES)]
    options = pb.MatchOptions(rerank=pb.RERANK_MODE_CROSS_ENCODER)
    responses: list[pb.BatchMatchResponse] = []
    async with asyncio.timeout(BATCH_SECONDS / 2):
        async for response in matcher.stub.BatchMatch(
            pb.BatchMatchRequest(queries=queries, options=options), timeout=BATCH_SECONDS
        ):
            responses.append(response)
            if len(responses) == 50:
                encoder.kill()
    assert sorted(response.query_index for response in responses) == list(range(QUERIES))
    answered = [response for response in responses if response.HasField("response")]
    failed = [from_status(response.error) for response in responses if response.HasField("error")]
    assert len(answered) >= 50
    assert len(failed) > 0
    assert {type(error) for error in failed} == {DependencyUnavailable}
    assert all(error.retry_delay_seconds for error in failed)
    assert {len(response.response.matches) for response in answered} == {10}
    degraded = {response.response.degraded for response in answered}
    assert degraded <= {pb.DEGRADED_REASON_UNSPECIFIED, pb.DEGRADED_REASON_RERANK_UNAVAILABLE}

    await asyncio.to_thread(encoder.start)
    await matcher.until_whole()
    for response in answered[:5]:
        alone = (await matcher.match(queries[response.query_index], 20.0, top_k=50)).answer
        recall_scores = {match.document.id: match.recall_score for match in alone.matches}
        for match in response.response.matches:
            assert match.recall_score == pytest.approx(recall_scores[match.document.id], abs=1e-3)
