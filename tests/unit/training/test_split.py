from __future__ import annotations

from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from training.data_files import ClassPair, read_class_pairs
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
