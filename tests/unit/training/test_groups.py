from __future__ import annotations

from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from training.examples import Triple, read_candidate_lists, read_scored_pairs, read_triples
from training.groups import GroupSettings, convert_groups, read_groups
from training.labels import ScoreRange

ROWS = [
    "negation\t感冒了能不能吃螃蟹\t伤风期间吃蟹要紧吗\t感冒了可以吃螃蟹吗\t感冒了为什么不能吃螃蟹\t感冒了喝什么粥好",
    "number\tI lost 5 kg\tFive kilos are gone\tI have lost 5 kg\tI lost 15 kg\tHow do I lose weight?",
]
DATA = Path("training/data")


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    path = tmp_path / "groups.tsv"
    path.write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    return path


def test_pairs_have_both_orders_and_graded_labels(groups: Path, tmp_path: Path):
    output = tmp_path / "pairs.tsv"
    convert_groups(GroupSettings(groups=[groups], pairs=output, near_miss_label=0.1))
    pairs = read_scored_pairs(output)
    assert len(pairs) == 24
    labels = {(pair.first, pair.second): pair.score for pair in pairs}
    for first, second, label in [
        ("I lost 5 kg", "Five kilos are gone", 1.0),
        ("I lost 5 kg", "I have lost 5 kg", 1.0),
        ("Five kilos are gone", "I have lost 5 kg", 1.0),
        ("I lost 5 kg", "I lost 15 kg", 0.1),
        ("Five kilos are gone", "I lost 15 kg", 0.1),
        ("I lost 5 kg", "How do I lose weight?", 0.0),
    ]:
        assert labels[first, second] == labels[second, first] == label


def test_triples_have_the_far_paraphrase_above_the_near_miss(groups: Path, tmp_path: Path):
    output = tmp_path / "triples.tsv"
    convert_groups(GroupSettings(groups=[groups], triples=output))
    triples = read_triples(output)
    assert len(triples) == 6
    assert Triple("I lost 5 kg", "Five kilos are gone", "I lost 15 kg") in triples
    [of_anchor] = [one for one in read_candidate_lists(output) if one.query == "I lost 5 kg"]
    assert of_anchor.positives == ("Five kilos are gone",)
    assert of_anchor.negatives == ("I lost 15 kg", "How do I lose weight?")


def test_a_header_is_recognised(groups: Path):
    header = "kind\tanchor\tfar_paraphrase\tclose_paraphrase\tnear_miss\tsame_topic\n"
    expected = read_groups(groups)
    groups.write_text(header + groups.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_groups(groups) == expected
    assert [group.kind for group in expected] == ["negation", "number"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [("number\ta\tb\tc\td", "line 3: has 5 columns"), ("number\ta\t \tc\td\te", "far paraphrase is empty")],
)
def test_a_broken_group_is_reported(groups: Path, row: str, problem: str):
    groups.write_text(groups.read_text(encoding="utf-8") + row + "\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=problem):
        read_groups(groups)


def test_something_must_be_written(groups: Path):
    with pytest.raises(InvalidInput, match="nothing to write"):
        convert_groups(GroupSettings(groups=[groups]))


@pytest.mark.parametrize("path", sorted(DATA.glob("groups_*.tsv")), ids=lambda path: path.name)
def test_the_projects_own_groups_are_whole(path: Path):
    groups = read_groups(path)
    anchors = [group.anchor for group in groups]
    assert len(anchors) == len(set(anchors))
    for group in groups:
        texts = (
            group.anchor,
            group.far_paraphrase,
            group.close_paraphrase,
            group.near_miss,
            group.same_topic,
        )
        assert len(set(texts)) == len(texts), group


@pytest.mark.parametrize(("name", "highest"), [("graded_pairs_zh.tsv", 5), ("question_pairs_zh.tsv", 1)])
def test_the_projects_own_pairs_are_whole(name: str, highest: int):
    pairs = read_scored_pairs(DATA / name, score_range=ScoreRange(0, highest))
    assert {pair.score for pair in pairs} == {label / highest for label in range(highest + 1)}
    assert len({frozenset((pair.first, pair.second)) for pair in pairs}) == len(pairs)
    assert all(pair.first != pair.second for pair in pairs)


def test_the_projects_own_passages_are_whole_blocks():
    rows = [line.split("\t") for line in (DATA / "passages_zh.tsv").read_text(encoding="utf-8").splitlines()]
    assert len(rows) % 8 == 0
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
    assert len({question for question, _, _ in rows}) == len(rows)
