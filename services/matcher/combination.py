"""How the two scores of a candidate become one."""

from __future__ import annotations


def recall_score(cosine: float) -> float:
    """Cosine in -1..1 -> 0..1: opposite is as good as unrelated."""
    return min(max(cosine, 0.0), 1.0)


def combined_score(recall: float, rerank: float, rerank_weight: float) -> float:
    """Weighted mean of two scores in 0..1."""
    return rerank_weight * rerank + (1.0 - rerank_weight) * recall
