"""Questions about the demo's corpus, with all documents that truly answer each.

All were written before anybody saw what the system answers to them, with a plain search of the corpus for ids
and with no model. `EVERYDAY` are as a programmer types into a search box; `HARD` avoid the words of the
answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EVERYDAY = Path(__file__).with_name("questions.tsv")
HARD = Path(__file__).with_name("questions_hard.tsv")


@dataclass(frozen=True)
class Question:
    """A question in plain words, and the ids of all documents that are a right answer."""

    text: str
    accepted_ids: tuple[str, ...]


def read_questions(path: Path = EVERYDAY) -> list[Question]:
    """All questions of a file: question TAB id[,id...]."""
    pairs = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [Question(text, tuple(ids.split(","))) for text, ids in pairs]
