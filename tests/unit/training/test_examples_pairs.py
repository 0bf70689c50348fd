from __future__ import annotations

from pathlib import Path

import pytest

from textmatch.errors import InvalidInput
from training.examples import ScoredPair, read_scored_pairs, read_sentences


def _write(directory: Path, content: bytes) -> Path:
    path = directory / "pairs.tsv"
    path.write_bytes(content)
    return path


def test_reads_pairs_in_order(tmp_path: Path) -> None:
    path = _write(tmp_path, "a cat\tein Kätzchen\t0.75\nb\tc\t1\n".encode())
    assert read_scored_pairs(path) == [ScoredPair("a cat", "ein Kätzchen", 0.75), ScoredPair("b", "c", 1.0)]


@pytest.mark.parametrize(
    "content", [b"a\tb\t0.5\r\nc\td\t0\r\n", b"a\tb\t0.5\nc\td\t0", b"\xef\xbb\xbfa\tb\t0.5\nc\td\t0\n"]
)
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path, content: bytes) -> None:
    assert read_scored_pairs(_write(tmp_path, content)) == [
        ScoredPair("a", "b", 0.5),
        ScoredPair("c", "d", 0.0),
    ]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = _write(tmp_path, "one\u2028two\tb\x0bc\t0.5\n".encode())
    assert read_scored_pairs(path) == [ScoredPair("one\u2028two", "b\x0bc", 0.5)]


@pytest.mark.parametrize(
    ("second_line", "place", "problem"),
    [
        (b"only\ttwo", "line 2", "has 2 columns; it needs 3"),
        (b"a\tb\t0.5\td", "line 2", "has 4 columns; it needs 3"),
        (b"a\tb\tabc", "line 2 column 3", 'score "abc" is not a number'),
        (b"a\tb\t", "line 2 column 3", 'score "" is not a number'),
        (b"a\tb\t1.01", "line 2 column 3", "score 1.01 is outside 0..1; for other scores use --score-range"),
        (b"a\tb\t-0.1", "line 2 column 3", "score -0.1 is outside 0..1"),
        (b"a\tb\tnan", "line 2 column 3", "score nan is outside 0..1"),
        (b"\tb\t0.5", "line 2 column 1", "sentence 1 is empty"),
        (b"a\t \t0.5", "line 2 column 2", "sentence 2 is empty"),
        (b"a\t\xff\t0.5", "line 2", "is not UTF-8: byte 0xff at byte 3 of the line"),
        (
            "忘记密码\t找回密码\t1".encode("gbk"),
            "line 2",
            "is not UTF-8: byte 0xcd at byte 1 of the line; it seems to be GBK: convert it",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, second_line: bytes, place: str, problem: str) -> None:
    path = _write(tmp_path, b"a\tb\t0.5\n" + second_line + b"\nc\td\t0.5\n")
    with pytest.raises(InvalidInput) as raised:
        read_scored_pairs(path)
    assert str(raised.value).startswith(f"{path} {place}: {problem}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_refused_at_the_first_line(tmp_path: Path, encoding: str) -> None:
    path = _write(tmp_path, "a\tb\t0.5\nc\td\t0.5\n".encode(encoding))
    with pytest.raises(InvalidInput, match="line 1"):
        read_scored_pairs(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is empty; it needs at least one row"):
        read_scored_pairs(_write(tmp_path, b""))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        read_scored_pairs(tmp_path / "absent.tsv")


def test_sentences_are_distinct_and_labels_free(tmp_path: Path) -> None:
    path = _write(tmp_path, b"a\tb\tneutral\nb\tc\tentailment\n")
    assert read_sentences(path) == ["a", "b", "c"]
