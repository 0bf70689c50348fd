"""The demo: start the stack, ingest the standard library's documentation, and ask questions about it.

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
from standalone.demo.corpus import Question, build_corpus, read_questions
from standalone.supervisor import holder_pid
from textmatch.cli.__main__ import main as textmatch
from textmatch.cli.errors import message_of
from textmatch.cli.options import find_addresses
from textmatch.client import TextMatchClient
from textmatch.console import cell, print_line, print_table
from textmatch.errors import TextMatchError

# Every third question, to cover all subjects.
_STRIDE = 3
_SHOWN_QUESTIONS = 12


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
    documents = build_corpus()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            record = {"id": document.id, "text": document.text, "attributes": document.attributes}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(documents)


def answer(client: TextMatchClient, questions: Sequence[Question]) -> Table:
    """The best match of each question; a tick marks a right answer."""
    table = Table(
        title="Forty questions are in standalone/demo/questions.tsv; here are some", title_justify="left"
    )
    for column in ("question", "score", "best match", "", "text"):
        table.add_column(column, overflow="fold")
    for question in questions:
        for match in client.match(question.text, top_k=1):
            tick = "✓" if match.document.id in question.accepted_ids else ""
            document = match.document
            table.add_row(question.text, f"{match.score:.2f}", cell(document.id), tick, cell(document.text))
    return table


def _run(data_dir: Path) -> int:
    if not holder_pid(data_dir):
        print_line("Starting Redis, Qdrant, encoder, matcher and worker ...")
        start_detached(data_dir)
    corpus = data_dir / "demo" / "corpus.jsonl"
    count = write_corpus(corpus)
    print_line(f"{count:,} functions, classes and methods of Python's standard library are in {corpus}")
    code = textmatch(["ingest", str(corpus), "--wait", "--data-dir", str(data_dir)])
    if code:
        return code
    with find_addresses(data_dir).client() as client:
        print_table(answer(client, read_questions()[::_STRIDE][:_SHOWN_QUESTIONS]))
    command = os.path.relpath(Path(sys.executable).with_name("textmatch"))
    where = "" if data_dir == DEFAULT_DATA_DIR else f" --data-dir {data_dir}"
    print_line(f'Ask something yourself:  {command} match "how do I read a file line by line"{where}')
    print_line(f"Stop everything:         {command} down{where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
