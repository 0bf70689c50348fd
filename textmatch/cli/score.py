"""`textmatch score`: say how alike two texts are in meaning."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from textmatch.cli import options
from textmatch.cli.connection import find_addresses
from textmatch.client import Scorer, ScoreResult, TextPair
from textmatch.console import one_line, print_json, print_line
from textmatch.documents import text_violation
from textmatch.io.line_reader import CommandFailed, UnreadableLine, file_name, opened, read_lines

Texts = Annotated[list[str] | None, typer.Argument(metavar="[A B]", help="The two texts, each in quotes.")]
File = Annotated[str, typer.Option("--file", help="Pairs, one a line with a tab between; - for stdin.")]
ScorerOption = Annotated[Scorer, typer.Option("--scorer", help="Which kind of model scores.")]
Model = Annotated[str, typer.Option("--model", help="Name or model id of a loaded model of that kind.")]

_PAIRS_PER_CALL = 256


def score(
    texts: Texts = None,
    file: File = "",
    scorer: ScorerOption = Scorer.CROSS_ENCODER,
    model: Model = "",
    as_json: options.Json = False,
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Say how alike two texts are in meaning, from 0 (not at all) to 1 (the same).

    With --json one line a pair, in their order: {"score", "raw", "model_id", "truncated"}.
    """
    pairs = _pairs(texts or [], file)
    with find_addresses(data_dir, encoder=encoder).client() as client:
        while chunk := list(islice(pairs, _PAIRS_PER_CALL)):
            result = client.score_pairs(chunk, scorer=scorer, model=model)
            if as_json:
                for line in to_json(result):
                    print_json(line)
                continue
            for pair, value in zip(chunk, result.scores, strict=True):
                print_line(f"{value:.3f}\t{one_line(pair[0])}\t{one_line(pair[1])}")


def to_json(result: ScoreResult) -> list[dict[str, Any]]:
    """The shape that programs rely on."""
    return [
        {"score": score, "raw": raw, "model_id": result.model_id, "truncated": truncated}
        for score, raw, truncated in zip(
            result.scores.tolist(), result.raw_scores.tolist(), result.truncated, strict=True
        )
    ]


def _pairs(texts: list[str], file: str) -> Iterator[TextPair]:
    if bool(texts) == bool(file):
        raise typer.BadParameter("give two texts, or --file")
    if file:
        return read_pairs(file)
    if len(texts) != 2:
        raise typer.BadParameter(f"give two texts, not {len(texts)}; put each in quotes")
    return iter([(texts[0], texts[1])])


def read_pairs(name: str) -> Iterator[TextPair]:
    """The pairs of a file, in their order.

    Raises:
        CommandFailed: naming the line that is no pair, or whose texts are not valid.
    """
    with opened(name) as file:
        for line in read_lines(file):
            try:
                yield _to_pair(line.text())
            except UnreadableLine as error:
                raise CommandFailed(f"{file_name(name)} line {line.number}: {error}") from error


def _to_pair(text: str) -> TextPair:
    fields = text.split("\t")
    if len(fields) != 2:
        raise UnreadableLine(f"has {len(fields)} fields; it must have two, with a tab between")
    for field_name, field in zip(("first text", "second text"), fields, strict=True):
        if violation := text_violation(field_name, field):
            raise UnreadableLine(str(violation))
    return fields[0], fields[1]
