"""`textmatch score`: similarity of pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from textmatch.cli import options
from textmatch.cli.options import find_addresses
from textmatch.client import Scorer, ScoreResult, TextPair
from textmatch.console import one_line, print_json, print_line
from textmatch.documents import text_violation
from textmatch.io.columns import ANY_LABEL, PAIR
from textmatch.io.data_files import FileFormat, read_cells
from textmatch.io.line_reader import UnreadableFile

Texts = Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Two texts, each in quotes.")]
File = Annotated[
    str,
    typer.Option(
        "--file",
        metavar="FILE|-",
        help="Pairs: two texts, or two texts and a label; TSV, CSV, JSON or Parquet; - for stdin.",
    ),
]
HeaderOption = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether FILE starts with a header row. Default: detected."),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        metavar="TEXT,TEXT[,LABEL]",
        help="Columns of FILE, by name or by number from 1. Default: found by their names or positions.",
    ),
]
ScorerOption = Annotated[Scorer, typer.Option("--scorer", help="Kind of model that scores.")]
Model = Annotated[str, typer.Option("--model", help="Name or id of a loaded model of that kind.")]

_PAIRS_PER_CALL = 256


@dataclass(frozen=True)
class _Pair:
    """Two texts to compare, and the label that the file gives them; None if it has none."""

    texts: TextPair
    label: str | None = None


def score(
    texts: Texts = None,
    file: File = "",
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    scorer: ScorerOption = Scorer.CROSS_ENCODER,
    model: Model = "",
    truncate: options.Truncate = None,
    as_json: options.Json = False,
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Score how similar two texts are in meaning, from 0 (not at all) to 1 (the same).

    --json prints one line per pair, in order: {"score", "raw", "model_id", "truncated"}. A label of the file
    is passed through as "label". A cross-encoder with several classes adds "classes", their probabilities.
    """
    pairs = _pairs(texts or [], file, FileFormat.of_options(header, columns))
    with find_addresses(data_dir, encoder=encoder).client() as client:
        while chunk := list(islice(pairs, _PAIRS_PER_CALL)):
            result = client.score_pairs(
                [pair.texts for pair in chunk], scorer=scorer, model=model, truncate=truncate
            )
            for position, pair in enumerate(chunk):
                if as_json:
                    print_json(_score_fields(result, position) | _label_field(pair))
                else:
                    cells = pair.texts if pair.label is None else (*pair.texts, pair.label)
                    print_line("\t".join([f"{result.scores[position]:.3f}", *map(one_line, cells)]))


def _score_fields(result: ScoreResult, position: int) -> dict[str, Any]:
    fields = {
        "score": float(result.scores[position]),
        "raw": float(result.raw_scores[position]),
        "model_id": result.model_id,
        "truncated": result.truncated[position],
    }
    if result.class_scores is not None:
        fields["classes"] = dict(zip(result.labels, result.class_scores[position].tolist(), strict=True))
    return fields


def _label_field(pair: _Pair) -> dict[str, Any]:
    return {} if pair.label is None else {"label": pair.label}


def _pairs(texts: list[str], file: str, file_format: FileFormat) -> Iterator[_Pair]:
    if bool(texts) == bool(file):
        raise typer.BadParameter("give two texts or --file")
    if file:
        return _read_pairs(file, file_format)
    if len(texts) != 2:
        raise typer.BadParameter(f"give two texts, not {len(texts)}; put each in quotes")
    return iter([_Pair((texts[0], texts[1]))])


def _read_pairs(file: str, file_format: FileFormat) -> Iterator[_Pair]:
    """The pairs of a file, in order.

    Raises:
        InvalidInput: a row is not a pair of valid texts.
    """
    for first, second, *label in read_cells(Path(file), (*PAIR, ANY_LABEL), file_format):
        for name, cell in (("first text", first), ("second text", second)):
            if violation := text_violation(name, cell.text):
                raise UnreadableFile.of_field(cell.place, str(violation))
        yield _Pair((first.text, second.text), label[0].text if label else None)
