from __future__ import annotations

from pathlib import Path

import pytest

from bench.quality import MODES, QualitySet, _metrics, _quick, groups
from training.evaluation.matching import Half
from training.evaluation.retrieval import RetrievalSet


def test_the_paraphrase_must_be_ranked_above_its_near_miss() -> None:
    collection = RetrievalSet(list("abcdef"), ["q", "r", "s"], [{0: 1.0}, {2: 1.0}, {4: 1.0}])
    one = QualitySet(collection, near_misses=[1, 3, 5])
    # Above; below; neither was found.
    assert _metrics(one, [[0, 1], [3, 2], []])["near_miss_accuracy"] == pytest.approx(1 / 3)


def test_the_query_itself_is_not_a_duplicate() -> None:
    collection = RetrievalSet(["a", "b", "c"], ["a"], [{1: 1.0}])
    found = _metrics(QualitySet(collection, own=[0]), [[0, 1, 2]])
    assert found["map"] == found["mrr10"] == found["first"] == 1.0


def test_a_set_without_data_is_not_read_before_it_is_measured(tmp_path: Path) -> None:
    names = [name for group, _ in groups(tmp_path, 10, Half.FIRST) for name in group]
    assert names[:2] == ["cranfield", "cmrc"]
    assert {"questions_zh", "questions_hard_zh", "afqmc", "lcqmc", "near_miss_en", "near_miss_zh"} < set(
        names
    )
    assert {"dense", "hybrid", "auto"} < set(MODES)


def test_the_built_in_sets_can_be_read(tmp_path: Path) -> None:
    sets = dict(groups(tmp_path, 10, Half.FIRST))
    for name in ("near_miss_en", "near_miss_zh"):
        whole = sets[name,]()
        few = _quick(whole)[name]
        collection = whole[name].collection
        assert (len(collection.queries), len(collection.documents)) == (170, 340)
        assert len(few.near_misses) == len(few.collection.queries) == 10


def test_quick_duplicates_keep_the_answers_of_their_queries(tmp_path: Path) -> None:
    rows = [f"question {at}\tthe same {at}\t1\n" for at in range(1_500)]
    (tmp_path / "afqmc-zh").mkdir()
    (tmp_path / "afqmc-zh" / "dev.tsv").write_text("".join(rows))
    one = _quick(dict(groups(tmp_path, 0, Half.FIRST))["afqmc",]())["afqmc"]
    assert len(one.collection.documents) == 2_000
    assert all(max(own, *grades) < 2_000 for own, grades in zip(one.own, one.collection.grades, strict=True))
