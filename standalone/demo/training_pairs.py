"""Training pairs: questions about libraries other than Python's own, with texts from their docstrings.

    python -m standalone.demo.training_pairs OUTPUT --python VENV/bin/python

`library_questions.tsv` holds questions, each with the name that answers it; a name without a question serves
as a negative example. `library_questions_zh.tsv` has some of the questions in Chinese. The texts belong to
their libraries and are read from the installed packages, which `library_packages.txt` lists.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from standalone.demo.corpus import read_names, spell_out, summarise

QUESTIONS = Path(__file__).with_name("library_questions.tsv")
QUESTIONS_ZH = Path(__file__).with_name("library_questions_zh.tsv")


def main(
    output: Annotated[Path, typer.Argument(help="Folder to write pairs.tsv and texts.txt to.")],
    python: Annotated[
        Path, typer.Option(help="An interpreter for which library_packages.txt is installed.")
    ] = Path(sys.executable),
) -> None:
    """Write pairs.tsv (question, text, 1), translations.tsv (Chinese, English) and texts.txt (texts)."""
    rows = read_rows(QUESTIONS)
    texts = read_texts(python, {name for _, name in rows})
    output.mkdir(parents=True, exist_ok=True)
    pairs = [f"{question}\t{texts[name]}\t1\n" for question, name in rows if question and name in texts]
    others = [f"{texts[name]}\n" for question, name in rows if not question and name in texts]
    (output / "pairs.tsv").write_text("".join(pairs), encoding="utf-8")
    (output / "texts.txt").write_text("".join(others), encoding="utf-8")
    english = {name: question for question, name in rows if question}
    translations = [f"{question}\t{english[name]}\n" for question, name in read_rows(QUESTIONS_ZH)]
    (output / "translations.tsv").write_text("".join(translations), encoding="utf-8")
    missing = len(rows) - len(pairs) - len(others)
    typer.echo(f"{len(pairs):,} pairs, {len(others):,} texts; {missing:,} names are not installed")


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a file of questions: the question, and the name that answers it."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def read_texts(python: Path, names: set[str]) -> dict[str, str]:
    """The text of each name in the format of the demo's corpus, if the interpreter can import it."""
    packages = sorted({name.partition(".")[0] for name in names})
    return {
        record["id"]: f"{spell_out(record['id'])}: {summarise(record['docstring'])}"
        for record in read_names(python, packages)
        if record["id"] in names
    }


if __name__ == "__main__":
    typer.run(main)
