"""Mixed texts for benchmarks: real words, lengths as in practice, the same in every run."""

from __future__ import annotations

import random

from standalone.demo.corpus import build_corpus

_MEDIAN_WORDS = 14
_LENGTH_SPREAD = 0.8
_MAX_WORDS = 180


def mixed_texts(count: int, seed: int = 0) -> list[str]:
    """English texts of lognormal length: a median of about 20 tokens, 95th percentile about 100."""
    words = [word for document in build_corpus() for word in document.text.split()]
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        length = min(_MAX_WORDS, max(1, round(_MEDIAN_WORDS * generator.lognormvariate(0, _LENGTH_SPREAD))))
        start = generator.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts
