"""Lists of candidates, triples as lists, the scores of a teacher, and texts of given columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from textmatch.io.columns import PAIR
from textmatch.io.data_files import FileFormat
from training.examples import (
    CandidateList,
    ScoredPair,
    Triple,
    read_candidate_lists,
    read_scored_pairs,
    read_texts,
    read_triples,
)


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lists_in_json_lines(tmp_path: Path):
    path = _write(
        tmp_path / "lists.jsonl",
        json.dumps(
            {"query": "花呗怎么还", "pos": ["花呗还款"], "neg": ["借呗还款", "花呗"], "pos_scores": [1.0]}
        ),
        json.dumps({"query": "q", "pos": ["a", "b"], "neg": []}),
        json.dumps({"query": "花呗怎么还", "pos": ["花呗"], "neg": ["余额宝"]}),
        json.dumps({"anchor": "x", "positive": "y", "negative": "z"}),
    )
    assert read_candidate_lists(path) == [
        # A text that is a positive once is no negative.
        CandidateList("花呗怎么还", ("花呗还款", "花呗"), ("借呗还款", "余额宝")),
        CandidateList("q", ("a", "b"), ()),
        CandidateList("x", ("y",), ("z",)),
    ]
    assert read_triples(path)[:2] == [
        Triple("花呗怎么还", "花呗还款", "借呗还款"),
        Triple("花呗怎么还", "花呗还款", "花呗"),
    ]


def test_keys_are_known_by_name_and_not_by_their_order(tmp_path: Path):
    """The first of three keys was the anchor: a file that begins with the negative taught the opposite."""
    path = _write(tmp_path / "t.jsonl", json.dumps({"neg": "open it", "pos": "shut it", "query": "close it"}))
    assert read_triples(path) == [Triple("close it", "shut it", "open it")]
    path = _write(tmp_path / "t.json", json.dumps([{"负例": "关灯", "正例": "把门关上", "查询": "关门"}]))
    assert read_triples(path) == [Triple("关门", "把门关上", "关灯")]
    path = _write(tmp_path / "u.jsonl", json.dumps({"wrong": "a", "asked": "b", "right": "c"}))
    with pytest.raises(InvalidInput, match="has the keys wrong, asked, right; it needs query, pos and neg"):
        read_triples(path)
    chosen = FileFormat(columns=("asked", "right", "wrong"))
    assert read_triples(path, chosen) == [Triple("b", "c", "a")]


def test_triples_of_a_query_are_one_list(tmp_path: Path):
    path = _write(tmp_path / "triples.tsv", "anchor\tpositive\tnegative", "q\ta\tb", "r\tc\td", "q\ta\te")
    assert read_candidate_lists(path) == [
        CandidateList("q", ("a",), ("b", "e")),
        CandidateList("r", ("c",), ("d",)),
    ]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"query": "q", "pos": [], "neg": ["a"]}, 'key "pos": has no text'),
        ({"pos": ["a"], "neg": ["b"]}, "has the keys pos, neg; it needs query, pos and neg, or --columns"),
        ({"query": ["q"], "pos": ["a"]}, 'key "query": must hold texts'),
        ({"query": "q", "pos": ["a"], "neg": [" "]}, 'key "neg": must hold texts'),
        ({"query": "q", "pos": ["a"], "neg": 3}, 'key "neg": must hold texts'),
    ],
)
def test_a_broken_list_is_reported(tmp_path: Path, record: dict[str, object], problem: str):
    path = _write(tmp_path / "lists.jsonl", json.dumps(record))
    with pytest.raises(InvalidInput, match=problem):
        read_candidate_lists(path)


def test_a_teachers_scores_have_no_range(tmp_path: Path):
    path = _write(tmp_path / "scores.tsv", "query\ttext\tscore", "q\ta\t11.5", "q\tb\t-9.25")
    assert read_scored_pairs(path, score_range=None) == [
        ScoredPair("q", "a", 11.5),
        ScoredPair("q", "b", -9.25),
    ]


@pytest.mark.parametrize("score", ["nan", "inf", "high"])
def test_a_teachers_score_is_a_finite_number(tmp_path: Path, score: str):
    path = _write(tmp_path / "scores.tsv", "query\ttext\tscore", f"q\ta\t{score}")
    with pytest.raises(InvalidInput, match=f'score "?{score}"? is not'):
        read_scored_pairs(path, score_range=None)


def test_texts_of_two_columns(tmp_path: Path):
    path = _write(tmp_path / "translations.tsv", "一只猫\ta cat", "一只狗\ta dog")
    assert read_texts(path, PAIR) == [("一只猫", "a cat"), ("一只狗", "a dog")]
