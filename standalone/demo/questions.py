"""The demo's questions, with the documents that truly answer each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """A question in plain words, and the ids of all documents that are a right answer."""

    text: str
    accepted_ids: tuple[str, ...]


def read_questions() -> list[Question]:
    """All questions of questions.tsv: question TAB id[,id...]."""
    lines = Path(__file__).with_name("questions.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return [Question(text, tuple(ids.split(","))) for text, ids in pairs]
