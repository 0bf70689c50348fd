from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textmatch.errors import InvalidInput
from training.evaluation.retrieval import read_retrieval_set

CORPUS = [
    {"id": "d1", "title": "Cats", "text": "sit"},
    {"id": "d2", "text": "dogs"},
    {"id": "d3", "text": ""},
]
QUERIES = [{"id": "q1", "text": "who sits"}, {"id": "q2", "text": "unjudged"}, {"id": "q3", "text": "dogs?"}]
QRELS = "q3\td2\t2\nq1\td1\t1\nq1\td2\t-1\nq3\td1\t1\n"


def _write(directory: Path, **files: Any) -> Path:
    content: dict[str, Any] = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS, **files}
    for name in ("corpus", "queries"):
        lines = content[name]
        text = lines if isinstance(lines, str) else "".join(f"{json.dumps(line)}\n" for line in lines)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (directory / "qrels.tsv").write_text(content["qrels"], encoding="utf-8")
    return directory


def test_reads_documents_judged_queries_and_grades(tmp_path: Path) -> None:
    test_set = read_retrieval_set(_write(tmp_path))
    assert test_set.documents == ["Cats sit", "dogs", ""]
    assert test_set.queries == ["dogs?", "who sits"]
    assert test_set.grades == [{1: 2.0, 0: 1.0}, {0: 1.0, 1: 0.0}]
    assert test_set.relevant.tolist() == [2, 1]
    assert test_set.ideal(3).tolist() == [[2, 1, 0], [1, 0, 0]]
    assert test_set.grades_of(test_set.relevant[:, None] - 1).tolist() == [[2.0], [1.0]]


def test_the_files_of_beir_are_read(tmp_path: Path) -> None:
    corpus = [{"_id": "d1", "title": "Cats", "text": "Cats sit", "metadata": {}}]
    _write(tmp_path, corpus=corpus, queries=[{"_id": "q1", "text": "x"}])
    (tmp_path / "qrels.tsv").unlink()
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    test_set = read_retrieval_set(tmp_path)
    assert (test_set.documents, test_set.grades) == (["Cats sit"], [{0: 1.0}])


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"corpus": "{"}, r"corpus.jsonl line 1: is not JSON"),
        ({"corpus": "3\n"}, "corpus.jsonl line 1: is not a JSON object"),
        ({"corpus": "[]\n"}, "corpus.jsonl: is empty"),
        ({"corpus": ""}, "corpus.jsonl: is empty"),
        ({"corpus": [{"text": "x"}]}, 'corpus.jsonl line 1: has no "id"'),
        ({"corpus": [*CORPUS, CORPUS[0]]}, 'corpus.jsonl line 4: the id "d1" occurs twice'),
        ({"corpus": [{"id": "d1", "text": 3}]}, 'corpus.jsonl line 1: "text" must be a string'),
        ({"queries": [{"id": "q1"}, {"id": "q3", "text": "x"}]}, 'the query "q1" has no text'),
        ({"qrels": ""}, "qrels.tsv: is empty"),
        ({"qrels": "q1\td1\n"}, "qrels.tsv line 1: has 2 columns"),
        ({"qrels": "q1\td1\t1\nq9\td1\t1\n"}, 'qrels.tsv line 2: unknown query "q9"'),
        ({"qrels": "q1\td9\t1\n"}, 'qrels.tsv line 1: unknown document "d9"'),
        ({"qrels": "q1\td1\t1\nq1\td1\tabc\n"}, 'qrels.tsv line 2: grade must be a number, not "abc"'),
        ({"qrels": "q1\td1\t1\nq1\td1\tnan\n"}, 'qrels.tsv line 2: grade must be a number, not "nan"'),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, files: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as raised:
        read_retrieval_set(_write(tmp_path, **files))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (_write(tmp_path) / name).unlink()
    with pytest.raises(InvalidInput, match=name):
        read_retrieval_set(tmp_path)
