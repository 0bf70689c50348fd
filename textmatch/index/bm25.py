"""BM25 as sparse vectors: the terms of texts and their weights.

    terms("Call shutil.rmtree")  ->  ["call", "shutil", "rmtree", "shutil.rmtree"]
    terms("删除目录")             ->  ["删", "除", "目", "录", "删除", "除目", "目录"]

The vector of a document has the saturated frequency of each of its terms. The vector of a query has the
inverse document frequency (idf) of each term that it asks for. Their product is the BM25 score of the pair:

    score      = sum of idf(term) * saturated frequency(term), over the terms of the query
    attainable = sum of idf(term) * (k1 + 1), the limit that no document can exceed
    share      = score / attainable
    shared     = share * number of terms of the query
    lexical    = share * shared ** 2 / (shared ** 2 + 4 ** 2)

`lexical`, 0..1, is the evidence that goes into the score of a match. One shared term of a short question says
little, so the share counts in full only if it stands for many terms. Neither depends on the size of the
corpus.

Texts are normalised (NFKC), case-folded and freed of invisible characters first. Combining marks belong to
their word. Scripts without spaces between words are indexed by single characters and by pairs of neighbours;
queries ask for the pairs. Identifiers are indexed by their parts and as a whole.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from qdrant_client import models

from textmatch.index.term_statistics import TermStatistics

# BM25's k1 and b.
_SATURATION = 1.2
_LENGTH_SHARE = 0.4
# Stands for the average length of a collection, which would change with every write.
_TYPICAL_TERMS = 64
# A query counts the whole identifier as half a term more, because its parts count too.
_IDENTIFIER_WEIGHT = 0.5
# With so many shared terms, evidence is half of the share.
_HALF_EVIDENCE_TERMS = 4.0

# Thai, Lao, Burmese, Khmer, Chinese, Japanese and Korean.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# All marks; those beyond the range are variation selectors.
_MARKS = "".join(
    chr(code) for code in range(0x300, 0x1E950) if unicodedata.category(chr(code)) in {"Mn", "Mc"}
)
# Format characters (category Cf) and variation selectors.
_INVISIBLE = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    "\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
)
_CHARACTER = rf"(?![{_MARKS}])[{_UNSPACED}][{_MARKS}]*"
_WORD = rf"(?:[^\W_{_UNSPACED}][{_MARKS}]*)+"
_RUN = re.compile(rf"(?P<unspaced>(?:{_CHARACTER})+)|{_WORD}(?:[._-]+{_WORD})*")
_CHARACTERS = re.compile(_CHARACTER)
# The same for texts without marks, ten times as fast.
_MARK = re.compile(f"[{_MARKS}]")
_PLAIN_WORD = rf"[^\W_{_UNSPACED}]+"
_PLAIN_RUN = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|{_PLAIN_WORD}(?:[._-]+{_PLAIN_WORD})*")
_JOINTS = re.compile(r"[._-]+")
_STOP_WORD_LIST = """
a an and are as at be by can do does for from had has have how i if in into is it its me my no not of on one
or than that the their then there these they this those to was were what when where which who will
with you your
的 了 和 是 在 有 我 你 他 她 它 们 吗 呢 吧 啊 与 及 或 也 都 就 而
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


@dataclass(frozen=True)
class QueryVector:
    """The distinct terms of a query as a sparse vector: the idf of each term, and their limits.

    Attributes:
        attainable: no document scores higher.
        term_count: the number of terms; a whole identifier counts as half a term.
    """

    indices: list[int]
    values: list[float]
    attainable: float
    term_count: float

    def lexical(self, score: float) -> float:
        """The evidence of a BM25 score, 0..1."""
        share = min(max(score / self.attainable, 0.0), 1.0)
        shared_terms = share * self.term_count
        return share * shared_terms**2 / (shared_terms**2 + _HALF_EVIDENCE_TERMS**2)


def terms(text: str) -> list[str]:
    """The terms under which a text is indexed, with repetitions."""
    found: list[str] = []
    for run in _runs(text):
        found += run.units
        found += run.pairs
        found += run.identifier
    return found


def document_vector(text: str) -> models.SparseVector:
    """The saturated frequency of each term of a stored text, 0..2.2."""
    counts: Counter[str] = Counter()
    unit_count = 0
    for run in _runs(text):
        counts.update(run.units)
        counts.update(run.pairs)
        counts.update(run.identifier)
        unit_count += sum(unit not in _STOP_WORDS for unit in run.units)
    length = 1.0 - _LENGTH_SHARE + _LENGTH_SHARE * unit_count / _TYPICAL_TERMS
    weights: dict[int, float] = {}
    for term, count in counts.items():
        weight = count * (_SATURATION + 1.0) / (count + _SATURATION * length)
        # If the hashes of two terms collide, the larger weight counts.
        weights[_index(term)] = max(weight, weights.get(_index(term), 0.0))
    return models.SparseVector(indices=list(weights), values=list(weights.values()))


def query_vector(text: str, statistics: TermStatistics) -> QueryVector | None:
    """The terms of a query with their idf; None if it has no terms.

    Stop words count only if the query has no other terms.
    """
    weights: dict[str, float] = {}
    for run in _runs(text):
        weights |= dict.fromkeys(run.pairs or run.units, 1.0)
        for identifier in run.identifier:
            weights.setdefault(identifier, _IDENTIFIER_WEIGHT)
    if not weights:
        return None
    weights = {term: one for term, one in weights.items() if term not in _STOP_WORDS} or weights
    by_index = {_index(term): one for term, one in weights.items()}
    indices = sorted(by_index)
    counted = np.array([by_index[one] for one in indices])
    values = counted * statistics.idf(indices)
    return QueryVector(
        indices=indices,
        values=values.tolist(),
        attainable=float(values.sum()) * (_SATURATION + 1.0),
        term_count=float(counted.sum()),
    )


@dataclass(frozen=True)
class _Run:
    """One word, one identifier or one stretch of unspaced script."""

    units: list[str]  # words, or characters with their marks
    pairs: list[str]  # of neighbouring characters
    identifier: tuple[str, ...] = ()  # empty unless there are several words


def _runs(text: str) -> Iterator[_Run]:
    folded = _folded(text)
    is_plain = not _MARK.search(folded)
    for match in (_PLAIN_RUN if is_plain else _RUN).finditer(folded):
        run = match.group()
        if match.lastgroup:
            characters = list(run) if is_plain else _CHARACTERS.findall(run)
            yield _Run(characters, [first + second for first, second in pairwise(characters)])
        else:
            words = _JOINTS.split(run)
            yield _Run(words, [], (run,) if len(words) > 1 else ())


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded))


def _index(term: str) -> int:
    """A 32-bit hash. It is stored, so it must never change."""
    return zlib.crc32(term.encode())
