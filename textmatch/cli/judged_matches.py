"""Asking a matcher judged queries: every part of every candidate's score, with its grade."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from textmatch.cli.failures import CommandFailed
from textmatch.cli.output import one_line
from textmatch.client import (
    BatchMatchResult,
    DegradedReason,
    Match,
    MatchOptions,
    MatchResult,
    ScoreExplanation,
    TextMatchClient,
)
from textmatch.combination import Calibration, Weights
from textmatch.tuning import JudgedCandidates

# So many are scored, so that weights can be tried that prefer other candidates than those in use.
_CANDIDATES = 100
# A thousand pairs, which even a slow encoder scores within the time of one call.
_QUERIES_PER_CALL = 10


@dataclass(frozen=True)
class JudgedMatches:
    """Answers to judged queries, the weights they were made with, and the bi-encoder that found them."""

    queries: list[JudgedCandidates]
    weights: Weights
    model_id: str


def ask(
    client: TextMatchClient,
    texts: Mapping[str, str],
    grades: Mapping[str, Mapping[str, float]],
    *,
    is_reranked: bool,
    on_answer: Callable[[], None],
) -> JudgedMatches:
    """Ask every query in the bulk lane.

    Args:
        texts: by query id.
        grades: by query id, the grades of documents by their id.
        is_reranked: whether the stack has a cross-encoder.
        on_answer: called for every answer.

    Raises:
        CommandFailed: nothing is found, or an answer is not complete.
        TextMatchError: a query failed.
    """
    depth = _depth(client, next(iter(texts.values()))) if is_reranked else None
    answers: dict[str, MatchResult] = {}
    for name, result in _answers(client, texts, is_reranked):
        answers[name] = result
        on_answer()
    found = next((result for result in answers.values() if result.matches), None)
    if found is None:
        raise CommandFailed("the matcher finds nothing for any of the queries")
    # In the order of the file, so that the same judgements give the same weights.
    queries = [_judged(answers[name], grades[name], depth) for name in texts]
    return JudgedMatches(queries, _weights(found.matches[0]), found.bi_encoder_model_id)


def _answers(
    client: TextMatchClient, texts: Mapping[str, str], is_reranked: bool
) -> Iterator[tuple[str, MatchResult]]:
    """Each query's id with its answer, which is complete."""
    options = MatchOptions(
        top_k=_CANDIDATES, rerank=is_reranked, explain=True, omit_text=True, omit_attributes=True
    )
    names = list(texts)
    for start in range(0, len(names), _QUERIES_PER_CALL):
        chunk = names[start : start + _QUERIES_PER_CALL]
        for answer in client.batch_match([texts[name] for name in chunk], **options):
            yield chunk[answer.query_index], _complete(answer)


def _depth(client: TextMatchClient, query: str) -> int | None:
    """How many candidates the matcher scores when nobody says how many; None if all."""
    [answer] = client.batch_match([query])
    result = _complete(answer)
    return result.scored_count if result.scored_count < result.candidate_count else None


def _complete(answer: BatchMatchResult) -> MatchResult:
    result = answer.result
    if result is None:
        raise answer.error or CommandFailed("a query has no answer")
    if result.degraded is None:
        return result
    hint = (
        "; for a stack without a cross-encoder there is --no-rerank"
        if result.degraded is DegradedReason.RERANK_UNAVAILABLE
        else ""
    )
    raise CommandFailed(
        f'nothing can be learned from the answer to "{one_line(result.query)}", which is incomplete:'
        f" {result.degraded}{hint}"
    )


def _judged(result: MatchResult, grades: Mapping[str, float], depth: int | None) -> JudgedCandidates:
    found = {match.document.id for match in result}
    explanations = [_explanation(match) for match in result]
    scores = [match.rerank_score for match in result]
    return JudgedCandidates(
        cosine=np.array([one.cosine for one in explanations]),
        bm25=np.array([one.bm25 or 0.0 for one in explanations]),
        cross_encoder=np.array([np.nan if score is None else score for score in scores]),
        grades=np.array([grades.get(match.document.id, 0.0) for match in result]),
        missed_grades=np.array([grade for document, grade in grades.items() if document not in found]),
        depth=depth,
    )


def _explanation(match: Match) -> ScoreExplanation:
    if match.explanation is None:
        raise CommandFailed("the matcher does not explain its scores; is it older than this command?")
    return match.explanation


def _weights(match: Match) -> Weights:
    explanation = _explanation(match)
    calibration = Calibration(*explanation.calibration) if explanation.calibration else None
    # They come as 32 bits.
    lexical, rerank = round(explanation.lexical_weight, 6), round(explanation.rerank_weight, 6)
    return Weights(lexical, rerank, calibration)
