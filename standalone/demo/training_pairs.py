"""Pairs to train on: questions about other libraries than Python's own, and what those say of themselves.

    python -m standalone.demo.training_pairs OUTPUT --python VENV/bin/python

`library_questions.tsv` holds questions in plain words, each with the name of what answers it; a name without
a question is only there to be told apart from the others. The texts belong to their libraries and are read
from what is installed: `library_packages.txt` says what that was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from standalone.demo.corpus import spell_out, summarise

_HERE = Path(__file__).parent
QUESTIONS = _HERE / "library_questions.tsv"


def main(
    output: Annotated[Path, typer.Argument(help="Folder to write pairs.tsv and texts.txt to.")],
    python: Annotated[
        Path, typer.Option(help="An interpreter for which library_packages.txt is installed.")
    ] = Path(sys.executable),
) -> None:
    """Write pairs.tsv (question, text, 1) and texts.txt, one text a line."""
    rows = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    texts = read_texts(python, {name for _, name in rows})
    output.mkdir(parents=True, exist_ok=True)
    pairs = [f"{question}\t{texts[name]}\t1\n" for question, name in rows if question and name in texts]
    others = [f"{texts[name]}\n" for question, name in rows if not question and name in texts]
    (output / "pairs.tsv").write_text("".join(pairs), encoding="utf-8")
    (output / "texts.txt").write_text("".join(others), encoding="utf-8")
    missing = len(rows) - len(pairs) - len(others)
    typer.echo(f"{len(pairs):,} pairs, {len(others):,} texts; {missing:,} names are not in what is installed")


def read_texts(python: Path, names: set[str]) -> dict[str, str]:
    """What the demo's corpus would say of each, as far as the interpreter can import it."""
    script = _HERE / "stdlib_names.py"
    packages = sorted({name.partition(".")[0] for name in names})
    # Some packages write files where they are imported.
    with tempfile.TemporaryDirectory() as directory:
        finished = subprocess.run(  # noqa: S603 -- our own script
            [str(python.absolute()), "-I", "-W", "ignore", str(script), *packages],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    records = (json.loads(line) for line in finished.stdout.splitlines())
    return {
        record["id"]: f"{spell_out(record['id'])}: {summarise(record['docstring'])}"
        for record in records
        if record["id"] in names
    }


if __name__ == "__main__":
    typer.run(main)
