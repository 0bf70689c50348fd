"""Data files as people have them: what is read without options, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textmatch.errors import InvalidInput
from textmatch.io.data_files import FileFormat
from training.examples import (
    ClassPair,
    ScoredPair,
    read_class_pairs,
    read_scored_pairs,
    read_sentences,
)

PAIRS = [ClassPair("怎么退货", "如何退款退货", "1"), ClassPair("几点开门", "几点关门", "0")]
RECORDS = [{"query": pair.first, "document": pair.second, "label": int(pair.label)} for pair in PAIRS]


def _write(directory: Path, name: str, content: str, encoding: str = "utf-8") -> Path:
    path = directory / name
    path.write_text(content, encoding=encoding, newline="")
    return path


def _rows(separator: str, *header: str) -> str:
    rows = [header] if header else []
    rows += [(pair.first, pair.second, pair.label) for pair in PAIRS]
    return "".join(separator.join(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", _rows("\t"), "columns are separated by TAB"),
        ("p.tsv", _rows(","), "columns are separated by comma"),
        ("p.csv", _rows(";", "sentence1", "sentence2", "label"), "columns are separated by semicolon"),
        ("p.data", _rows("|"), "columns are separated by vertical bar"),
        ("p.csv", _rows(",", "句子1", "句子2", "标签"), ""),
        ("p.tsv", _rows("\t", "标准问", "相似问", "是否相似"), ""),
        ("p.tsv", _rows("\t", "eins", "zwei", "drei"), "line 1 is taken as a header; --no-header"),
        ("p.csv", _rows(",", "eins", "zwei", "label"), 'reads "eins" as sentence 1, "zwei" as sentence 2'),
        ("p.csv", "label,text_b,text_a\n1,如何退款退货,怎么退货\n0,几点关门,几点开门\n", ""),
        ("p.tsv", "\n" + _rows("\t").replace("\n", "\n\n") + "\n", ""),
        ("p.csv", _rows(",") + ",,\n\n", ""),
        (
            "p.tsv",
            '"怎么退货"\t"如何退款退货"\t"1"\n"几点开门"\t"几点关门"\t"0"\n',
            "quotes around its cells",
        ),
        ("p.json", json.dumps(RECORDS), ""),
        ("p.json", "\ufeff" + json.dumps(RECORDS, indent=2), ""),
        ("p.json", json.dumps({"version": 2, "data": RECORDS}, indent=1), ""),
        ("p.jsonl", "\n".join(["", *map(json.dumps, RECORDS), ""]), ""),
        ("p.txt", "\n".join(map(json.dumps, RECORDS)), ""),
        ("p.jsonl", "\n".join(json.dumps({**one, "label": bool(one["label"])}) for one in RECORDS), ""),
    ],
)
def test_a_file_is_read_without_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, said: str
):
    path = _write(tmp_path, name, content)
    found = read_class_pairs(path)
    known = {"true": "1", "false": "0"}
    assert [ClassPair(one.first, one.second, known.get(one.label, one.label)) for one in found] == PAIRS
    assert [pair.score for pair in read_scored_pairs(path)] == [1.0, 0.0]
    printed = capsys.readouterr().err
    assert said in printed if said else not printed


def test_numbers_of_columns_find_the_separator(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file of questions that is .csv by name, with TABs and a number in front, was 'has 1 columns'."""
    path = _write(tmp_path, "q.csv", "7\t怎么退货\t如何退款，退货\t1\n8\t几点开门\t几点关门\t0\n")
    pairs = read_class_pairs(path, FileFormat(columns=("2", "3", "4")))
    assert pairs == [ClassPair("怎么退货", "如何退款，退货", "1"), PAIRS[1]]
    assert "columns are separated by TAB" in capsys.readouterr().err


def test_more_columns_than_needed_name_the_option(tmp_path: Path):
    path = _write(tmp_path, "q.tsv", "7\ta\tb\t1\n")
    with pytest.raises(InvalidInput, match="has 4 columns; it needs 3 .*; choose them with --columns"):
        read_class_pairs(path)


def test_parquet_is_read(tmp_path: Path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(RECORDS), path)
    assert read_class_pairs(path) == PAIRS
    swapped = FileFormat(columns=("document", "query", "label"))
    assert read_class_pairs(path, swapped)[0].first == PAIRS[0].second
    pq.write_table(pa.Table.from_pylist([{**RECORDS[0], "label": None}]), path)
    with pytest.raises(InvalidInput, match='row 1 key "label": must be text or a number'):
        read_class_pairs(path)


def test_a_folder_in_the_layout_of_beir_is_pairs(tmp_path: Path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d1", "title": "退货", "text": "七天内"}, {"_id": "d2", "title": "", "text": "关门"}]
    _write(folder, "corpus.jsonl", "\n".join([*map(json.dumps, documents), ""]))
    _write(folder, "queries.jsonl", json.dumps({"_id": "q", "text": "怎么退货", "metadata": {}}) + "\n\n")
    train = _write(folder, "qrels/train.tsv", "query-id\tcorpus-id\tscore\nq\td1\t1\nq\td2\t0\n\n")
    expected = [ScoredPair("怎么退货", "退货 七天内", 1.0), ScoredPair("怎么退货", "关门", 0.0)]
    assert read_scored_pairs(folder) == read_scored_pairs(train) == expected
    assert read_sentences(folder) == ["怎么退货", "退货 七天内", "关门"]
    _write(folder, "qrels/dev.tsv", "q\td2\t1\n")
    with pytest.raises(InvalidInput, match="has dev.tsv, train.tsv in qrels; give the path of one of them"):
        read_scored_pairs(folder)
    with pytest.raises(InvalidInput, match="only folders with corpus.jsonl, queries.jsonl and"):
        read_scored_pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("s.csv", "句子1,句子2,标签\n好的,可以,1\n", ["好的", "可以"]),
        ("s.tsv", "id\ttext\n17\t好的\n18\t可以\n", ["好的", "可以"]),
        ("s.tsv", "17\t好的\t可以\n18\t不行\t不可以\n", ["好的", "可以", "不行", "不可以"]),
        ("s.tsv", "好的\t可以\n不行\t不可以\n", ["好的", "可以", "不行", "不可以"]),
        ("s.txt", "text\n好的，可以\n", ["好的，可以"]),
        ("s.txt", "one, two\n three\n", ["one, two", " three"]),
        ("s.tsv", "".join(f"句子{number}\t{'甲乙'[number % 2]}\n" for number in range(40)),
         [f"句子{number}" for number in range(40)]),
        ("s.jsonl", '{"id": 3, "标题": "x", "content": "好的"}\n', ["好的"]),
    ],
)  # fmt: skip
def test_sentences_are_texts_and_nothing_else(tmp_path: Path, name: str, content: str, expected: list[str]):
    """Ids, numbers, labels and the words of headers became sentences, and second columns were lost."""
    assert read_sentences(_write(tmp_path, name, content)) == expected


def test_columns_and_header_of_sentences_are_the_callers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _write(tmp_path, "s.tsv", "nr\tfrage\tthema\n1\t好的\t甲\n2\t可以\t乙\n")
    assert read_sentences(path, FileFormat(columns=("frage",))) == ["好的", "可以"]
    assert read_sentences(path, FileFormat(columns=("2",), has_header=True)) == ["好的", "可以"]
    assert read_sentences(path, FileFormat(has_header=True)) == ["好的", "甲", "可以", "乙"]
    assert "columns 2, 3 of 3 read as sentences" in capsys.readouterr().err
    with pytest.raises(InvalidInput, match='there is no column "antwort"; the header has nr, frage, thema'):
        read_sentences(path, FileFormat(columns=("antwort",)))


def test_equal_labels_are_one_class(tmp_path: Path):
    path = _write(tmp_path, "p.tsv", "a\tb\t2\nc\td\t0\ne\tf\t2.0\ng\th\t0.00\n")
    assert [pair.label for pair in read_class_pairs(path)] == ["2", "0", "2", "0"]
    path = _write(tmp_path, "q.tsv", "a\tb\tnan\n")
    with pytest.raises(InvalidInput, match='line 1 column 3: label "nan" is not a finite number'):
        read_class_pairs(path)
