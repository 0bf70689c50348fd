"""The questions that the default bi-encoder learnt from: of other libraries than it is asked about."""

from __future__ import annotations

import sys
from pathlib import Path

from standalone.demo.corpus import EVERYDAY, HARD, read_questions
from standalone.demo.training_pairs import QUESTIONS, read_texts


def rows() -> list[list[str]]:
    return [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def test_nothing_is_learnt_of_what_is_asked_about():
    assert all(len(row) == 2 for row in rows())
    libraries = {name.partition(".")[0] for _, name in rows()}
    assert not libraries & sys.stdlib_module_names
    asked = {question.text for path in (EVERYDAY, HARD) for question in read_questions(path)}
    learnt = {question for question, _ in rows() if question}
    assert len(learnt) > 6_000
    assert not asked & learnt


def test_texts_are_those_of_the_libraries():
    names = {name for _, name in rows() if name.startswith("click.")} | {"no_such_library.function"}
    texts = read_texts(Path(sys.executable), names)
    assert texts["click.termui.style"].startswith("click termui style: Styles a text with ANSI styles")
    assert texts.keys() < names
