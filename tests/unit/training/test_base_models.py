"""The base model that is chosen by the language of the texts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from textmatch.models.model_resolver import DEFAULT_CROSS_ENCODER, MINI_LM, MULTILINGUAL_E5
from training.base_models import base_for, pair_scorer_over

GERMAN = ["Wie lösche ich einen Ordner?", "Können wir früher zurückzahlen?"]


@pytest.mark.parametrize(
    ("texts", "base"),
    [
        (["How do I delete a folder?"] * 50 + ["Where is the café?"], MINI_LM),
        (["花呗可以提前还款吗", "花呗能不能提前还"], MULTILINGUAL_E5),
        (["如何用 Python 删除一个 folder", "how to delete a folder"], MULTILINGUAL_E5),
        (GERMAN, MULTILINGUAL_E5),
        (["¿Cómo puedo borrar una carpeta?"], MULTILINGUAL_E5),
        (["2 + 2", "🙂"], MINI_LM),
        ([], MINI_LM),
    ],
)
def test_the_base_reads_the_language_of_the_texts(texts: list[str], base: str):
    printed = io.StringIO()
    assert base_for(texts, Console(file=printed, width=200)) == base
    assert printed.getvalue().startswith(f"base: {base}, since ")
    assert "--base chooses another" in printed.getvalue()


def test_a_sample_is_spread_over_the_file():
    texts = ["how to delete a folder"] * 10_000 + ["如何删除一个文件夹"] * 1_000
    assert base_for(texts, Console(quiet=True)) == MULTILINGUAL_E5


def test_built_in_pair_scorers_belong_to_their_base():
    assert pair_scorer_over(MULTILINGUAL_E5) == DEFAULT_CROSS_ENCODER
    assert pair_scorer_over("BAAI/bge-small-zh-v1.5") == ""
