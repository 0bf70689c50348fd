from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from standalone.demo.corpus import (
    EVERYDAY,
    EVERYDAY_ZH,
    HARD,
    HARD_ZH,
    HELP_DESK_EN,
    HELP_DESK_HARD_EN,
    HELP_DESK_HARD_ZH,
    HELP_DESK_ZH,
    build_corpus,
    read_help_desk,
    read_questions,
    spell_out,
    summarise,
)
from textmatch.documents import Document, document_violations


@pytest.fixture(scope="module")
def corpus() -> dict[str, Document]:
    return {document.id: document for document in build_corpus()}


def test_there_are_thousands_of_valid_documents(corpus: dict[str, Document]):
    assert len(corpus) > 3_000
    assert [problem for document in corpus.values() for problem in document_violations(document)] == []
    assert list(corpus) == sorted(corpus)


def test_the_order_and_the_texts_are_always_the_same(corpus: dict[str, Document]):
    documents = build_corpus()
    assert len(documents) == len(corpus)
    assert documents == list(corpus.values())


def test_known_names_are_there_with_their_attributes(corpus: dict[str, Document]):
    rmtree = corpus["shutil.rmtree"]
    assert rmtree.text == "shutil rmtree: Recursively delete a directory tree."
    assert rmtree.attributes == {"module": "shutil", "kind": "function"}
    assert corpus["collections.Counter"].attributes == {"module": "collections", "kind": "class"}
    assert corpus["pathlib.Path.glob"].attributes == {"module": "pathlib", "kind": "method"}
    assert corpus["str.strip"].attributes == {"module": "builtins", "kind": "method"}
    assert corpus["os.path.join"].text.startswith("os path join: Join two or more")


@pytest.mark.parametrize(
    ("public", "others"),
    [
        ("json.JSONDecoder", ["json.decoder.JSONDecoder"]),
        ("asyncio.sleep", ["asyncio.tasks.sleep"]),
        ("random.choice", ["random.Random.choice", "secrets.choice"]),
        ("os.path.join", ["posixpath.join", "ntpath.join"]),
        ("OSError", ["os.error", "socket.error", "shutil.error"]),
        ("bisect.insort_right", ["bisect.insort"]),
    ],
)
def test_what_has_many_names_is_there_once(corpus: dict[str, Document], public: str, others: list[str]):
    assert public in corpus
    assert [name for name in others if name in corpus] == []


def test_nothing_private_and_no_tests(corpus: dict[str, Document]):
    parts = {part for document_id in corpus for part in document_id.split(".")}
    assert [part for part in parts if part.startswith("_")] == []
    modules = {document.attributes["module"].partition(".")[0] for document in corpus.values()}
    assert not {"test", "idlelib", "antigravity", "posixpath"} & modules


def test_building_prints_nothing():
    code = "from standalone.demo.corpus import build_corpus; build_corpus()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (finished.stdout, finished.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Delete it.\n\n    More about it.", "Delete it."),
        ("\n    Delete\n    the tree.\n    ", "Delete the tree."),
        ("f(x)\n\nDelete it.", "Delete it."),
        ("f(x) -> int\nf(x, y) -> int\n\nDelete it.", "Delete it."),
        ("f(x, [y, [z]]) --> Yield all of them.\n\n>>> f(1)", "Yield all of them."),
        ("f(a\n  [, b])\n\nDelete it.", "Delete it."),
        ("f(x) -- delete x", "delete x"),
        ("f() -> new empty thing", "new empty thing"),
        ("f(x) returns a thing.", "f(x) returns a thing."),
        ("f(x, (y)", ""),
        ("f(x)", ""),
        ("boolop = And | Or", ""),
        ("An enumeration.", ""),
        ("Word", ""),
    ],
)
def test_summaries(docstring: str, summary: str):
    assert summarise(docstring) == summary


def test_long_paragraphs_end_with_a_sentence():
    summary = summarise("A sentence of six words here. " * 30)
    assert summary.endswith("here.")
    assert len(summary) <= 300
    assert len(summarise("x " * 1_000)) == 300


def test_names_are_spelled_as_words():
    assert spell_out("json.JSONDecoder.raw_decode") == "json json decoder raw decode"
    assert spell_out("concurrent.futures.ThreadPoolExecutor") == "concurrent futures thread pool executor"


@pytest.mark.parametrize(("path", "count"), [(EVERYDAY, 40), (HARD, 79)])
def test_every_answer_to_every_question_exists(path: Path, count: int, corpus: dict[str, Document]):
    questions = read_questions(path)
    assert len({question.text for question in questions}) == count
    assert [
        answer for question in questions for answer in question.accepted_ids if answer not in corpus
    ] == []


@pytest.mark.parametrize(
    ("path", "count"),
    [(HELP_DESK_ZH, 150), (HELP_DESK_EN, 60), (HELP_DESK_HARD_ZH, 150), (HELP_DESK_HARD_EN, 60)],
)
def test_every_answer_of_the_help_desk_exists(path: Path, count: int):
    questions = read_questions(path)
    assert len({question.text for question in questions}) == count
    ids = {document.id for document in read_help_desk()}
    assert {answer for question in questions for answer in question.accepted_ids} <= ids


def test_questions_are_not_copied_from_their_answers(corpus: dict[str, Document]):
    copied = [
        question.text
        for question in read_questions()
        for answer in question.accepted_ids
        if question.text.lower() in corpus[answer].text.lower()
    ]
    assert copied == []


@pytest.mark.parametrize(("english", "chinese"), [(EVERYDAY, EVERYDAY_ZH), (HARD, HARD_ZH)])
def test_the_chinese_questions_are_the_english_ones(english: Path, chinese: Path):
    translated = read_questions(chinese)
    assert [one.accepted_ids for one in translated] == [one.accepted_ids for one in read_questions(english)]
    assert all(any("\u4e00" <= character <= "\u9fff" for character in one.text) for one in translated)
