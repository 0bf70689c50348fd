"""The questions that the default bi-encoder learnt from: of other libraries than it is asked about."""

from __future__ import annotations

import sys
from pathlib import Path

from standalone.demo.corpus import EVERYDAY, EVERYDAY_ZH, HARD, HARD_ZH, read_questions
from standalone.demo.training_pairs import QUESTIONS, QUESTIONS_ZH, read_rows, read_texts


def test_nothing_is_learnt_of_what_is_asked_about():
    assert all(len(row) == 2 for row in read_rows(QUESTIONS))
    libraries = {name.partition(".")[0] for _, name in read_rows(QUESTIONS)}
    assert not libraries & sys.stdlib_module_names
    asked = {question.text for path in (EVERYDAY, HARD) for question in read_questions(path)}
    learnt = {question for question, _ in read_rows(QUESTIONS) if question}
    assert len(learnt) > 6_000
    assert not asked & learnt


def test_each_chinese_question_has_an_english_one():
    asked = {question.text for path in (EVERYDAY_ZH, HARD_ZH) for question in read_questions(path)}
    answered = {name for question, name in read_rows(QUESTIONS) if question}
    chinese = read_rows(QUESTIONS_ZH)
    assert len(chinese) > 4_000
    assert {name for _, name in chinese} <= answered
    assert not asked & {question for question, _ in chinese}


def test_texts_are_those_of_the_libraries():
    names = {name for _, name in read_rows(QUESTIONS) if name.startswith("click.")}
    names.add("no_such_library.function")
    texts = read_texts(Path(sys.executable), names)
    assert texts["click.termui.style"].startswith("click termui style: Styles a text with ANSI styles")
    assert texts.keys() < names
