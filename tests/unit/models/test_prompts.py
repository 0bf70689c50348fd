from __future__ import annotations

import pytest

from textmatch.models.prompts import BadPrompts, Prompts, parse_prompts, prompts_of

EMPTY = {"query": "", "document": ""}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("intfloat/e5-base-v2", Prompts("query: ", "passage: ")),
        ("/models/multilingual-e5-large", Prompts("query: ", "passage: ")),
        ("intfloat/e5-small@7999e1d", Prompts("query: ", "passage: ")),
        ("BAAI/bge-small-zh-v1.5@7999e1d", Prompts("为这个句子生成表示以用于检索相关文章：", "")),
        ("my-e5-base", Prompts("", "")),
        ("all-MiniLM-L6-v2", Prompts("", "")),
    ],
)
def test_families_without_prompts_get_theirs(name: str, expected: Prompts):
    assert prompts_of(name, EMPTY, None) == expected


def test_the_prompts_of_a_model_go_before_those_of_its_family():
    own = {**EMPTY, "passage": "text: "}
    assert prompts_of("intfloat/e5-base-v2", own, None) == Prompts("", "text: ")


def test_settings_go_before_the_model():
    own = {"query": "find: ", "document": "text: "}
    assert prompts_of("m", own, None) == Prompts("find: ", "text: ")
    assert prompts_of("m", own, Prompts("", "")) == Prompts("", "")


def test_the_setting_is_json():
    assert parse_prompts("") == {}
    assert parse_prompts('{"a": {"query": "find: "}, "b": {}}') == {
        "a": Prompts("find: ", ""),
        "b": Prompts("", ""),
    }


@pytest.mark.parametrize(
    "text", ["query: ", "[]", '{"a": "query: "}', '{"a": {"query": 1}}', '{"a": {"passage": "x"}}']
)
def test_anything_else_is_told(text: str):
    with pytest.raises(BadPrompts, match="TEXTMATCH_PROMPTS must be JSON such as"):
        parse_prompts(text)
