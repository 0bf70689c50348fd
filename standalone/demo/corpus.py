"""The demo's two corpora and questions about them.

* The standard library of Python: one English document per documented public name. `EVERYDAY` questions are
  phrased as a programmer would type them into a search box; `HARD` ones avoid the words of the answer.
  `EVERYDAY_ZH` and `HARD_ZH` are the same questions in Chinese.
* The help desk of an invented company: Chinese documents, everyday and hard questions in Chinese and English,
  and pairs of tickets that ask the same or only look alike.

Each question has the ids of all documents that answer it. The questions were written before the system had
answered any of them; the ids were found without a model.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from textmatch.documents import Document

EVERYDAY = Path(__file__).with_name("questions.tsv")
HARD = Path(__file__).with_name("questions_hard.tsv")
EVERYDAY_ZH = Path(__file__).with_name("questions_zh.tsv")
HARD_ZH = Path(__file__).with_name("questions_hard_zh.tsv")
HELP_DESK_ZH = Path(__file__).with_name("helpdesk_questions_zh.tsv")
HELP_DESK_EN = Path(__file__).with_name("helpdesk_questions_en.tsv")
HELP_DESK_HARD_ZH = Path(__file__).with_name("helpdesk_questions_hard_zh.tsv")
HELP_DESK_HARD_EN = Path(__file__).with_name("helpdesk_questions_hard_en.tsv")
_HELP_DESK = Path(__file__).with_name("helpdesk_zh.jsonl")
_TICKETS = Path(__file__).with_name("helpdesk_duplicates_zh.tsv")

_MAX_SUMMARY_CHARACTERS = 300
_MIN_SUMMARY_WORDS = 2
# Python generates these for classes without a docstring.
_BOILERPLATE = ("An enumeration.", "Abstract base class for generic types.")

_WORD_BOUNDARY = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_SIGNATURE_START = re.compile(r"(?:\w+ = )?[\w.]+\(")
_RETURN_ARROW = re.compile(r"\s*(?:-+>|=>)\s*")
_DASH = re.compile(r"(?: --?|:) ")
# "boolop = And | Or": a rule of a grammar.
_GRAMMAR_RULE = re.compile(r"\w+ = ")


@dataclass(frozen=True)
class Question:
    """A question in plain words, and the ids of all documents that are a right answer."""

    text: str
    accepted_ids: tuple[str, ...]


def build_corpus() -> list[Document]:
    """Thousands of documents, sorted by id, such as "shutil rmtree: Recursively delete a directory tree."

    Their number depends on the version of Python. Ids are dotted names (`shutil.rmtree`), attributes are
    `module` and `kind` (function, class or method).
    """
    documents = []
    for record in read_names(Path(sys.executable)):
        summary = summarise(record["docstring"])
        if summary:
            text = f"{spell_out(record['id'])}: {summary}"
            attributes = {"module": record["module"], "kind": record["kind"]}
            documents.append(Document(record["id"], text, attributes))
    return documents


def read_help_desk() -> list[Document]:
    """The entries of the help desk, such as "如何开启两步验证：登录后进入…"; the attribute is `category`."""
    records = [json.loads(line) for line in _HELP_DESK.read_text(encoding="utf-8").splitlines()]
    return [Document(record["id"], record["text"], record["attributes"]) for record in records]


def read_tickets() -> list[tuple[str, str, bool]]:
    """Pairs of tickets, and whether both ask the same."""
    rows = (line.split("\t") for line in _TICKETS.read_text(encoding="utf-8").splitlines())
    return [(first, second, label == "1") for first, second, label in rows]


def read_questions(path: Path = EVERYDAY) -> list[Question]:
    """All questions of a file: question TAB id[,id...]."""
    pairs = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [Question(text, tuple(ids.split(","))) for text, ids in pairs]


def read_names(python: Path, packages: Sequence[str] = ()) -> list[dict[str, str]]:
    """The output of `stdlib_names.py` in that interpreter, for packages or for the standard library."""
    # -S hides installed packages.
    options = ["-I", "-W", "ignore", *([] if packages else ["-S"])]
    script = Path(__file__).with_name("stdlib_names.py")
    # Some packages write files into the working directory when they are imported.
    with tempfile.TemporaryDirectory() as directory:
        finished = subprocess.run(  # noqa: S603 -- our own script
            [str(python.absolute()), *options, str(script), *packages],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return [json.loads(line) for line in finished.stdout.splitlines()]


def spell_out(name: str) -> str:
    """`json.JSONDecoder.raw_decode` -> "json json decoder raw decode"."""
    words = _WORD_BOUNDARY.sub(" ", name.replace(".", " "))
    return " ".join(words.lower().split())


def summarise(docstring: str) -> str:
    """The first paragraph on one line, without the signatures of C functions; "" if there is none."""
    body = _without_signatures(inspect.cleandoc(docstring))
    paragraph = " ".join(body.partition("\n\n")[0].split())
    if paragraph in _BOILERPLATE or _GRAMMAR_RULE.match(paragraph):
        return ""
    summary = _shortened(paragraph)
    return summary if len(summary.split()) >= _MIN_SUMMARY_WORDS else ""


def _without_signatures(text: str) -> str:
    """Drop "name(arguments) -> result", unless the result is a sentence or there is no other text."""
    longest_result = ""
    while _SIGNATURE_START.match(text):
        rest = text[_end_of_arguments(text) :]
        if dash := _DASH.match(rest):
            return rest[dash.end() :]
        arrow = _RETURN_ARROW.match(rest)
        if rest and not arrow and not rest.startswith("\n"):
            return text
        result, text = _split_result(rest[arrow.end() if arrow else 0 :])
        if result[:1].isupper() and len(result.split()) > _MIN_SUMMARY_WORDS:
            return result
        longest_result = max(longest_result, result, key=len)
    is_empty = not text or text.startswith(">>>")
    return longest_result if is_empty else text


def _split_result(text: str) -> tuple[str, str]:
    """The rest of a signature's line with the indented lines that continue it, and what follows."""
    line, *lines = text.splitlines() or [""]
    count = next((index for index, other in enumerate(lines) if not other.startswith(" ")), len(lines))
    return " ".join([line, *lines[:count]]).strip(), "\n".join(lines[count:]).lstrip()


def _end_of_arguments(text: str) -> int:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return position + 1
    return len(text)


def _shortened(paragraph: str) -> str:
    """As many whole sentences as fit; at least a part of the first."""
    summary, *sentences = _SENTENCE_END.split(paragraph)
    for sentence in sentences:
        if len(summary) + len(sentence) >= _MAX_SUMMARY_CHARACTERS:
            break
        summary = f"{summary} {sentence}"
    return summary[:_MAX_SUMMARY_CHARACTERS]
