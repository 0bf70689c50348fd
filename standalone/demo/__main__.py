"""The demo: start the stack, ingest two corpora, and ask questions in English and Chinese.

python -m standalone.demo --data-dir .textmatch
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from standalone.commands import DEFAULT_DATA_DIR, start_detached
from standalone.demo.corpus import (
    EVERYDAY,
    EVERYDAY_ZH,
    HELP_DESK_EN,
    HELP_DESK_ZH,
    Question,
    build_corpus,
    read_help_desk,
    read_questions,
    read_tickets,
)
from standalone.supervisor import holder_pid
from textmatch.cli.__main__ import main as textmatch
from textmatch.cli.errors import message_of
from textmatch.cli.options import find_addresses
from textmatch.client import TextMatchClient
from textmatch.console import cell, print_line, print_table
from textmatch.errors import TextMatchError

# A title, the questions, and how many of them are shown, spread over the file to cover all subjects.
_SHOWN = (
    ("English questions about Python's library", EVERYDAY, 8),
    ("The same in Chinese, about the same English documents", EVERYDAY_ZH, 4),
    ("Chinese questions to a help desk", HELP_DESK_ZH, 6),
    ("English questions to the Chinese help desk", HELP_DESK_EN, 3),
)
_SHOWN_TICKETS = 6


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m standalone.demo", description="Show what textmatch does."
    )
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="folder of the stack")
    data_dir: Path = parser.parse_args().data_dir
    try:
        return _run(data_dir)
    except TextMatchError as error:
        sys.stderr.write(f"demo: {message_of(error)}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def write_corpus(path: Path) -> int:
    """Write the corpus as JSON lines; returns how many documents there are."""
    documents = sorted([*build_corpus(), *read_help_desk()], key=lambda document: document.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            record = {"id": document.id, "text": document.text, "attributes": document.attributes}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(documents)


def answer(client: TextMatchClient, title: str, questions: Sequence[Question]) -> Table:
    """The best match of each question; a tick marks a right answer."""
    table = Table(title=title, title_justify="left")
    for column in ("question", "score", "best match", "", "text"):
        table.add_column(column, overflow="fold")
    for question in questions:
        for match in client.match(question.text, top_k=1):
            tick = "✓" if match.document.id in question.accepted_ids else ""
            document = match.document
            table.add_row(question.text, f"{match.score:.2f}", cell(document.id), tick, cell(document.text))
    return table


def compare(client: TextMatchClient, tickets: Sequence[tuple[str, str, bool]]) -> Table:
    """The pair score of each pair of tickets; a tick marks a right decision at 0.5."""
    table = Table(title="Do two tickets ask the same? The pair scorer's answer", title_justify="left")
    for column in ("ticket", "other ticket", "score", ""):
        table.add_column(column, overflow="fold")
    for first, second, is_same in tickets:
        score = float(client.score(first, [second]).scores[0])
        table.add_row(first, second, f"{score:.2f}", "✓" if (score >= 0.5) == is_same else "")
    return table


def _run(data_dir: Path) -> int:
    if not holder_pid(data_dir):
        print_line("Starting Redis, Qdrant, encoder, matcher and worker ...")
        start_detached(data_dir)
    corpus = data_dir / "demo" / "corpus.jsonl"
    count = write_corpus(corpus)
    print_line(f"{count:,} texts are in {corpus}: Python's standard library, and a Chinese help desk")
    code = textmatch(["ingest", str(corpus), "--wait", "--data-dir", str(data_dir)])
    if code:
        return code
    with find_addresses(data_dir).client() as client:
        for title, path, shown in _SHOWN:
            questions = read_questions(path)
            print_table(answer(client, title, questions[:: len(questions) // shown][:shown]))
        tickets = read_tickets()
        print_table(compare(client, tickets[:: len(tickets) // _SHOWN_TICKETS][:_SHOWN_TICKETS]))
    command = os.path.relpath(Path(sys.executable).with_name("textmatch"))
    where = "" if data_dir == DEFAULT_DATA_DIR else f" --data-dir {data_dir}"
    print_line(f'Ask something yourself:  {command} match "how do I read a file line by line"{where}')
    print_line(f"Stop everything:         {command} down{where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
