from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from textmatch.errors import InvalidInput
from training.evaluation.matching import (
    Half,
    NearMissTriple,
    Ranking,
    measure_duplicates,
    near_miss_accuracy,
    rank_by_recall,
    read_duplicates,
    read_near_misses,
    without_own,
)
from training.evaluation.retrieval import RankedDocuments
from training.evaluation.scorers import CharacterTfidf

TRIPLES = """\
negation\tcan I eat it\tis it edible\tcan I not eat it
number\tpay 3 coins\tthree coins to pay\tpay 4 coins
number\t身份证过期3天\t证件失效三日\t身份证过期3年
"""


@pytest.fixture
def triple_file(tmp_path: Path) -> Path:
    path = tmp_path / "triples.tsv"
    path.write_text(TRIPLES, encoding="utf-8")
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_near_misses_of_the_project_are_hard_and_their_halves_alike(language: str) -> None:
    path = Path(f"bench/data/near_miss_{language}.tsv")
    halves = [read_near_misses(path, half) for half in (Half.FIRST, Half.SECOND)]
    triples = [triple for half in halves for triple in half]
    assert [triple for triple in triples if not triple.is_hard] == []
    assert [len(half) for half in halves] == [170, 170]
    first, second = (Counter(triple.kind for triple in half) for half in halves)
    assert first == second
    texts = [text for triple in triples for text in (triple.query, triple.paraphrase, triple.near_miss)]
    assert len(set(texts)) == len(texts)


def test_halves_are_parts_of_the_file_in_order(triple_file: Path) -> None:
    first, second = (read_near_misses(triple_file, half) for half in (Half.FIRST, Half.SECOND))
    assert [triple.kind for triple in first] == ["negation", "number"]
    assert first + second == read_near_misses(triple_file)


def test_a_hard_near_miss_shares_more_words_or_characters_than_the_paraphrase(triple_file: Path) -> None:
    assert [triple.is_hard for triple in read_near_misses(triple_file)] == [True, False, True]
    assert not NearMissTriple("object", "猫在睡觉", "猫在睡", "狗在跑").is_hard


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("number\ta\tb", "line 4: has 3 columns; it needs 4 columns"),
        ("number\ta\tb\tc\td", "line 4: has 5 columns; it needs 4 columns"),
        ("number\ta\t\tc", "line 4 column 3: paraphrase is empty"),
    ],
)
def test_a_line_without_four_columns_is_refused(triple_file: Path, line: str, problem: str) -> None:
    triple_file.write_text(f"{TRIPLES}{line}\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=f"triples.tsv {problem}"):
        read_near_misses(triple_file)


def test_accuracy_of_all_triples_and_of_each_kind(triple_file: Path) -> None:
    metrics = near_miss_accuracy(read_near_misses(triple_file), np.array([True, False, True]))
    assert metrics.values == pytest.approx({"all": 2 / 3, "negation": 1.0, "number": 0.5})
    # Resamples without a triple of a kind do not count for it.
    assert metrics.estimates()["negation"].low == 1.0
    assert metrics.estimates()["all"].low == 0.0


def test_pairs_become_a_retrieval_set(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    rows = ["a\tb\t1", "b\tc\t1", "a\td\t0", "c\te\t1", "a\te\t0", "f\tf\t1", "g\th\t0"]
    path.write_text("\n".join(rows) + "\n")
    found = read_duplicates(path)
    texts = found.retrieval.documents
    assert texts == ["a", "b", "c", "d", "e", "f", "g", "h"]
    relevant = {
        query: {texts[document] for document in grades}
        for query, grades in zip(found.retrieval.queries, found.retrieval.grades, strict=True)
    }
    # e follows from a chain of pairs, but a pair says that it does not mean the same as a. f has no partner.
    assert relevant == {"a": {"b", "c"}, "b": {"a", "c", "e"}, "c": {"a", "b", "e"}}
    assert [texts[own] for own in found.own] == found.retrieval.queries
    drawn = read_duplicates(path, query_count=2)
    assert len(drawn.own) == 2
    assert drawn.retrieval.documents == texts


def test_the_query_is_not_an_answer() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]], dtype=np.float32)
    left = without_own(RankedDocuments(np.array([[4, 7, 2], [1, 2, 3]]), scores), np.array([4, 9]))
    assert left.documents.tolist() == [[7, 2], [1, 2]]
    assert left.scores == pytest.approx(np.array([[0.5, 0.1], [0.8, 0.7]]))


def test_figures_of_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("red cat\tcat red\t1\nold tree\ttree old\t1\nred cat\told tree\t0\n")
    test_set = read_duplicates(path)
    ranking = rank_by_recall(CharacterTfidf(), test_set)
    metrics = measure_duplicates(CharacterTfidf(), ranking, test_set, 2, repeats=20)
    perfect = {"map": 1.0, "mrr@10": 1.0, "recall@10": 1.0, "accept_ap": 1.0, "pair_ap": 1.0}
    assert {name: metrics.values[name] for name in perfect} == pytest.approx(perfect)
    assert ranking.found.documents.shape == (2, 3)


def test_accept_decisions_are_pooled_over_queries_and_ties_are_one_threshold(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\t1\nc\td\t1\ne\tf\t1\n")
    test_set = read_duplicates(path)
    # Documents: a b c d e f. Relevant are b, d and f.
    documents = np.array([[1, 2], [1, 3], [0, 5]])
    scores = np.array([[0.9, 0.4], [0.9, 0.9], [0.7, 0.2]], dtype=np.float32)
    ranking = Ranking(RankedDocuments(documents, scores), 0.0, 0.0)
    metrics = measure_duplicates(CharacterTfidf(), ranking, test_set, 2, repeats=20)
    expected = average_precision_score([1, 0, 0, 1, 0, 1], scores.ravel())
    assert metrics.values["accept_ap"] == pytest.approx(expected)
    assert metrics.values["map"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
