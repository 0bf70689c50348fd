from __future__ import annotations

import random
from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from training.examples import ClassPair, read_class_pairs
from training.split import SplitSettings, split_files, split_pairs

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
# Three pairs each share a sentence, as the hypotheses of one premise do.
PAIRS = [
    ClassPair(f"premise {number // 3}", f"hypothesis {number}", str(number % 2)) for number in range(600)
]


def _sentences(pairs: list[ClassPair]) -> set[str]:
    return {sentence for pair in pairs for sentence in (pair.first, pair.second)}


def test_every_pair_is_in_one_part_and_no_sentence_in_two():
    parts = split_pairs(PAIRS, SHARES, seed=1)
    assert sorted(pair.second for part in parts.values() for pair in part) == sorted(
        pair.second for pair in PAIRS
    )
    train, dev, test = (_sentences(parts[name]) for name in SHARES)
    assert not train & dev
    assert not (train | dev) & test
    assert [len(part) for part in parts.values()] == [480, 60, 60]


def test_the_seed_decides():
    assert split_pairs(PAIRS, SHARES, seed=1) == split_pairs(PAIRS, SHARES, seed=1)
    assert split_pairs(PAIRS, SHARES, seed=1) != split_pairs(PAIRS, SHARES, seed=2)


def _hubs_and_lone_pairs() -> list[ClassPair]:
    """Sentences with many pairs, most of which are positive, and lone pairs, most of which are negative."""
    chance = random.Random(7)
    pairs = [
        ClassPair(f"hub {number}", f"hub {number} spoke {spoke}", str(int(chance.random() < 0.8)))
        for number in range(150)
        for spoke in range(chance.choice((2, 4, 7, 12)))
    ]
    return pairs + [
        ClassPair(f"left {number}", f"right {number}", str(int(chance.random() < 0.25)))
        for number in range(900)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_parts_have_the_labels_and_the_groups_of_the_whole(seed: int):
    """Large groups went to train, and dev and test had 20 points less of the label that they have."""
    pairs = _hubs_and_lone_pairs()

    def shares(part: list[ClassPair]) -> list[float]:
        return [
            sum(pair.label == "1" for pair in part) / len(part),
            sum(pair.first.startswith("hub") for pair in part) / len(part),
        ]

    parts = split_pairs(pairs, SHARES, seed)
    for name, part in parts.items():
        assert len(part) / len(pairs) == pytest.approx(SHARES[name], abs=0.01)
        [label, hubs], [label_of_all, hubs_of_all] = shares(part), shares(pairs)
        assert label == pytest.approx(label_of_all, abs=0.02)
        assert hubs == pytest.approx(hubs_of_all, abs=0.03)


def test_graded_pairs_keep_their_grades():
    pairs = [ClassPair(f"a{number}", f"b{number}", f"{(number % 50) / 10:g}") for number in range(1000)]
    for part in split_pairs(pairs, SHARES, seed=1).values():
        grades = [float(pair.label) for pair in part]
        assert sum(grades) / len(grades) == pytest.approx(2.45, abs=0.1)


def test_sentences_that_differ_in_spaces_are_the_same():
    """Written to a file, they are."""
    pairs = [ClassPair(f"a{number // 2}" + "  b" * (number % 2) + " b" * (1 - number % 2), f"c{number}", "1")
             for number in range(40)]  # fmt: skip
    for part in split_pairs(pairs, SHARES, seed=1).values():
        assert len(part) % 2 == 0


def test_pairs_of_one_sentence_cannot_be_split():
    """All 60 went to train; dev.tsv and test.tsv were empty."""
    pairs = [ClassPair("where is my parcel", f"question {number}", str(number % 2)) for number in range(60)]
    with pytest.raises(InvalidInput, match=r"3 parts cannot be filled: .* has 60 of 60 pairs. Use --group"):
        split_pairs(pairs, SHARES, seed=1)
    parts = split_pairs(pairs, SHARES, seed=1, group_by="second")
    assert [len(part) for part in parts.values()] == [48, 6, 6]
    pairs += [ClassPair(f"a{number}", f"b{number}", "1") for number in range(4)]
    pairs += [ClassPair("where is my parcel", f"more {number}", "0") for number in range(40)]
    with pytest.raises(InvalidInput, match=r'the part "dev" would have \d pairs instead of 10: pairs that'):
        split_pairs(pairs, SHARES, seed=1)


def test_a_small_file_fills_all_parts_and_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "all.tsv"
    source.write_text("a\tb\t1\nc\td\t0\ne\tf\t1.0\ng\th\t0\n")
    split_files(SplitSettings(pairs=[source], output=tmp_path / "parts"))
    printed = capsys.readouterr()
    assert "parts/test.tsv: 1 pairs; " in printed.out
    assert "warning: dev has 25% of the pairs instead of 10%" in printed.err


def test_one_large_group_goes_to_the_largest_part():
    pairs = [ClassPair("hub", f"spoke {number}", "1") for number in range(50)]
    pairs += [ClassPair(f"a{number}", f"b{number}", "0") for number in range(50)]
    parts = split_pairs(pairs, SHARES, seed=1)
    assert all(any(pair.first == "hub" for pair in parts[name]) == (name == "train") for name in SHARES)
    assert [len(part) for part in parts.values()] == [80, 10, 10]


def test_files_are_split_into_plain_ones(tmp_path: Path):
    source = tmp_path / "all.csv"
    source.write_text('sentence1,sentence2,label\n"a\tb",c,1\nd,e,0\n')
    split_files(SplitSettings(pairs=[source], output=tmp_path / "parts", parts="one=0.5,two=0.5"))
    both = [pair for name in ("one", "two") for pair in read_class_pairs(tmp_path / "parts" / f"{name}.tsv")]
    assert sorted(both, key=lambda pair: pair.first) == [ClassPair("a b", "c", "1"), ClassPair("d", "e", "0")]
    with pytest.raises(InvalidInput, match="already exists"):
        split_files(SplitSettings(pairs=[source], output=tmp_path / "parts", parts="one=0.5,two=0.5"))


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ("train=0.8,dev=0.1", "the shares must sum to 1, not to 0.9"),
        ("train", '"train" is not NAME=SHARE'),
        ("../x=0.5,y=0.5", "names must be letters and digits"),
    ],
)
def test_wrong_shares_are_reported(tmp_path: Path, parts: str, problem: str):
    with pytest.raises(InvalidInput, match=problem):
        split_files(SplitSettings(pairs=[tmp_path / "none"], output=tmp_path, parts=parts))
