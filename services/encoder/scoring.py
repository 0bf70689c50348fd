"""The three ways to score pairs: a cross-encoder, the cosine, a classifier over two embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.encoder.jobs import Urgency
from services.encoder.pipeline import Pipeline, Work
from services.encoder.requests import ScoreInput, stored_embeddings
from services.encoder.served import BiEncoder, CrossEncoder, EmbeddingScorer, Scores, Served
from textmatch.errors import InvalidInput
from textmatch.models.tokens import TokenizedText


@dataclass(frozen=True)
class Scored:
    """Aligned with the input. `scores` are 0..1 and calibrated, `raw_scores` as the model had them before."""

    scores: Scores
    raw_scores: Scores
    truncated: Sequence[bool]
    model_id: str


async def score_by_cross_encoder(
    served: Served[CrossEncoder], wanted: ScoreInput, urgency: Urgency, pipeline: Pipeline
) -> Scored:
    """Score each pair of texts by reading both together.

    Raises:
        InvalidInput: embeddings were given; or naming the pairs that the model failed on.
    """
    if wanted.embeddings:
        raise InvalidInput.of_field("embeddings", "a cross-encoder reads texts, not embeddings")
    query_alone = len(wanted.firsts) == 1
    firsts = [wanted.firsts[0]] * len(wanted.seconds) if query_alone else wanted.firsts
    pairs = list(zip(firsts, wanted.seconds, strict=True))
    work = Work(
        model=served.engine_model,
        texts=[*firsts, *wanted.seconds],
        max_tokens=served.model.max_tokens,
        tokenize=lambda: served.model.tokenize_pairs(pairs),
        name_item=wanted.name_pair,
    )
    computed = await pipeline.compute(work, urgency)
    return Scored(
        scores=computed.rows[:, 0],
        raw_scores=computed.rows[:, 1],
        truncated=[text.truncated for text in computed.texts],
        model_id=served.model.model_id,
    )


async def score_by_embeddings(
    served: Served[BiEncoder],
    scorer: EmbeddingScorer,
    wanted: ScoreInput,
    urgency: Urgency,
    pipeline: Pipeline,
    *,
    max_texts: int,
) -> Scored:
    """Score each pair of embeddings, by the model's cosine or its pair classifier.

    Raises:
        InvalidInput: the embeddings given do not fit the model; or naming the texts that the model failed on.
    """
    model = served.model
    stored = stored_embeddings(wanted.embeddings, model.dimension, max_texts) if wanted.embeddings else None
    first_count = len(wanted.firsts)

    def tokenize() -> list[TokenizedText]:
        firsts = model.tokenize(wanted.firsts, is_query=True)
        return firsts + model.tokenize(wanted.seconds, is_query=False) if wanted.seconds else firsts

    def name_item(position: int) -> str:
        if position < first_count:
            return wanted.name_first(position)
        return wanted.name_second(position - first_count)

    work = Work(served.engine_model, [*wanted.firsts, *wanted.seconds], model.max_tokens, tokenize, name_item)
    computed = await pipeline.compute(work, urgency)
    first = computed.rows[:first_count]
    second = computed.rows[first_count:] if stored is None else stored
    scores, raw_scores = scorer.score(first, second)
    first_cut = np.array([text.truncated for text in computed.texts[:first_count]])
    second_cut = np.array([text.truncated for text in computed.texts[first_count:]] or [False])
    truncated = np.broadcast_to(first_cut | second_cut, len(second)).tolist()
    return Scored(scores, raw_scores, truncated, model.model_id)
