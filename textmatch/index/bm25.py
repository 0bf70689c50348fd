"""BM25 as sparse vectors. textmatch weighs the terms of a text; Qdrant multiplies by their IDF.

The score is the sum over the query's terms of idf(term) * saturation(term in document). Terms are lower-case
words. Chinese, Japanese and Korean are written without spaces: their terms are single characters and pairs of
neighbouring characters. Stop words are left out.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from qdrant_client import models

# BM25's k1 and b.
_SATURATION = 1.2
_LENGTH_SHARE = 0.4
# Stands for the average length of a collection, which would change with every write.
_TYPICAL_TERMS = 64

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{_IDEOGRAPHS}]+|[^\W_{_IDEOGRAPHS}]+")
_IS_IDEOGRAPHIC = re.compile(rf"[{_IDEOGRAPHS}]")
_STOP_WORD_LIST = """
a an and are as at be by can do does for from had has have how i if in into is it its me my no not of on one
or than that the their then there these they this those to was were what when where which who will
with you your
的 了 和 是 在 有 我 你 他 她 它 们 吗 呢 吧 啊 与 及 或 也 都 就 而
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


def terms(text: str) -> list[str]:
    """The terms of a text in order, with repetitions."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return [term for run in _RUN.findall(folded) for term in _terms_of(run) if term not in _STOP_WORDS]


def document_vector(text: str) -> models.SparseVector:
    """The weight of each term of a stored text."""
    counts = Counter(terms(text))
    length = 1.0 - _LENGTH_SHARE + _LENGTH_SHARE * sum(counts.values()) / _TYPICAL_TERMS
    weights: dict[int, float] = {}
    for term, count in counts.items():
        weight = count * (_SATURATION + 1.0) / (count + _SATURATION * length)
        # If the hashes of two terms collide, the larger weight counts.
        weights[_index(term)] = max(weight, weights.get(_index(term), 0.0))
    return models.SparseVector(indices=list(weights), values=list(weights.values()))


def query_vector(text: str) -> models.SparseVector:
    """Weight 1 for each term of a query; empty if the query has no terms."""
    indices = sorted({_index(term) for term in terms(text)})
    return models.SparseVector(indices=indices, values=[1.0] * len(indices))


def _terms_of(run: str) -> Iterator[str]:
    if not _IS_IDEOGRAPHIC.match(run):
        yield run
        return
    yield from run
    yield from (first + second for first, second in pairwise(run))


def _index(term: str) -> int:
    """A 32-bit hash. It is stored, so it must never change."""
    return zlib.crc32(term.encode())
