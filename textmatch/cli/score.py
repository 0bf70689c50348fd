"""`textmatch score`: similarity of pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer

from textmatch.cli import options
from textmatch.cli.options import find_addresses
from textmatch.client import Scorer, TextPair
from textmatch.console import one_line, print_json, print_line
from textmatch.documents import text_violation
from textmatch.io.line_reader import UnreadableFile, read_texts_of_lines

Texts = Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Two texts, each in quotes.")]
File = Annotated[
    str,
    typer.Option("--file", metavar="FILE|-", help="Pairs, one per line, separated by a tab; - for stdin."),
]
ScorerOption = Annotated[Scorer, typer.Option("--scorer", help="Kind of model that scores.")]
Model = Annotated[str, typer.Option("--model", help="Name or id of a loaded model of that kind.")]

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
    """Score how similar two texts are in meaning, from 0 (not at all) to 1 (the same).

    --json prints one line per pair, in order: {"score", "raw", "model_id", "truncated"}.
    """
    pairs = _pairs(texts or [], file)
    with find_addresses(data_dir, encoder=encoder).client() as client:
        while chunk := list(islice(pairs, _PAIRS_PER_CALL)):
            result = client.score_pairs(chunk, scorer=scorer, model=model)
            for pair, value, raw, truncated in zip(
                chunk, result.scores.tolist(), result.raw_scores.tolist(), result.truncated, strict=True
            ):
                if as_json:
                    print_json(
                        {"score": value, "raw": raw, "model_id": result.model_id, "truncated": truncated}
                    )
                else:
                    print_line(f"{value:.3f}\t{one_line(pair[0])}\t{one_line(pair[1])}")


def _pairs(texts: list[str], file: str) -> Iterator[TextPair]:
    if bool(texts) == bool(file):
        raise typer.BadParameter("give two texts or --file")
    if file:
        return _read_pairs(file)
    if len(texts) != 2:
        raise typer.BadParameter(f"give two texts, not {len(texts)}; put each in quotes")
    return iter([(texts[0], texts[1])])


def _read_pairs(file: str) -> Iterator[TextPair]:
    """The pairs of a file, in order.

    Raises:
        UnreadableFile: a line is not a pair of valid texts.
    """
    for place, line in read_texts_of_lines(file):
        texts = line.split("\t")
        if len(texts) != 2:
            problem = f"must have two columns separated by a tab, not {len(texts)}"
            raise UnreadableFile.of_field(place, problem)
        for name, text in zip(("first text", "second text"), texts, strict=True):
            if violation := text_violation(name, text):
                raise UnreadableFile.of_field(place, str(violation))
        yield texts[0], texts[1]
