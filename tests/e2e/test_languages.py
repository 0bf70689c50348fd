"""The stack with its default models, which read Chinese and English."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import Stack, running_stack
from textmatch.client import MatchResult
from textmatch.models.model_resolver import DEFAULT_BI_ENCODER, DEFAULT_CROSS_ENCODER

TEXTS = {
    "folder": "移除目录以及其中的全部内容",
    "disk": "这台电脑的硬盘坏了",
    "cat": "一只小猫睡着了",
    "passport": "申请护照需要带身份证",
    "list": "sort the items of a list in place",
}


@pytest.fixture(scope="module")
def default_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = {"TEXTMATCH_BI_ENCODER": DEFAULT_BI_ENCODER, "TEXTMATCH_CROSS_ENCODER": DEFAULT_CROSS_ENCODER}
    with running_stack(tmp_path_factory.mktemp("languages"), models) as running:
        with running.client() as client:
            client.ingest_all(({"id": key, "text": text} for key, text in TEXTS.items()), wait=True)
        yield running


def match(stack: Stack, query: str) -> MatchResult:
    with stack.client() as client:
        return client.match(query, top_k=len(TEXTS))


@pytest.mark.parametrize(
    ("query", "paraphrase", "unrelated"),
    [
        ("如何删除一个文件夹", "folder", "cat"),
        ("猫在睡觉", "cat", "disk"),
        ("怎样给列表排序", "list", "passport"),
        ("my computer's hard drive is broken", "disk", "cat"),
    ],
)
def test_the_paraphrase_comes_first_and_the_unrelated_text_scores_lower(
    default_stack: Stack, query: str, paraphrase: str, unrelated: str
):
    matches = match(default_stack, query).matches
    assert matches[0].document.id == paraphrase
    scores = {found.document.id: found.score for found in matches}
    # Scores are probabilities; that of a right answer to a short question can be small.
    assert scores.get(unrelated, 0.0) < scores[paraphrase] / 5


def test_full_width_forms_mean_the_same(default_stack: Stack):
    with default_stack.client() as client:
        wide, narrow = client.encode(["ＰＹＴＨＯＮ　ｌｉｓｔ　ｓｏｒｔ", "PYTHON list sort"]).embeddings
    assert wide @ narrow > 0.95
