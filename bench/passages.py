"""Sentences in long documents: `python -m bench.passages [--pairs FILE] [--filler FILE] [--max-words 10000]`.

Each document has one sentence of a pair, somewhere among filler sentences. The other sentence of the pair,
which means the same, must find it. Prints how many documents come first, how many of these show the passage
that has the sentence, and whether its place is right. Documents have 10 to `--max-words` words, evenly on a
logarithmic scale; a Chinese character counts as half a word.

Without files, the pairs are those of `bench/data/paraphrases.tsv`, one of each kind, and the filler is
English.
"""

from __future__ import annotations

import csv
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.duplicates import planted_pairs
from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import running_stack
from textmatch.client import Document, Match, TextMatchClient

_TEMPLATES = 60
_FILLER_TEXTS = 5_000
_MIN_WORDS = 10
_BULK_SECONDS = 3_600.0
_MATCH_SECONDS = 60.0
_SHOWN = 10


@dataclass(frozen=True)
class PlantedSentence:
    """A document, the place of the sentence in it, and the query that must find it."""

    document: Document
    start: int
    end: int
    query: str

    @property
    def language(self) -> str:
        """Of the sentence."""
        return "en" if self.query.isascii() else "zh"

    def is_shown_by(self, match: Match) -> bool:
        """Whether the passage of a match has the sentence, or the larger part of it."""
        passage = match.passage
        overlap = min(self.end, passage.end) - max(self.start, passage.start)
        return 2 * overlap > self.end - self.start

    def is_placed_by(self, match: Match) -> bool:
        """Whether the passage is where it is said to be."""
        passage = match.passage
        return self.document.text[passage.start : passage.end] == passage.text


def planted_sentences(
    pairs: Sequence[tuple[str, str]], filler: Sequence[str], max_words: int, seed: int = 0
) -> list[PlantedSentence]:
    """One document for each pair, the same in every run."""
    generator = random.Random(seed)
    planted = []
    for number, (query, sentence) in enumerate(pairs):
        words = round(_MIN_WORDS * (max_words / _MIN_WORDS) ** generator.random())
        is_english = sentence.isascii()
        own = [text for text in filler if text.isascii() == is_english] or filler
        around: list[str] = []
        while words > 0:
            around.append(generator.choice(own).rstrip())
            words -= len(around[-1].split()) if around[-1].isascii() else len(around[-1]) // 2
        place = generator.randrange(len(around) + 1)
        before = "".join(f"{text}\n" for text in around[:place])
        after = "".join(f"{text}\n" for text in around[place:])
        document = Document(f"d{number}", f"{before}{sentence}\n{after}")
        planted.append(PlantedSentence(document, len(before), len(before) + len(sentence), query))
    return planted


def main(
    pairs: Annotated[Path | None, typer.Option(help="TSV without a header: two sentences of a pair.")] = None,
    filler: Annotated[Path | None, typer.Option(help="A text in each line.")] = None,
    max_words: Annotated[int, typer.Option(min=_MIN_WORDS, help="Of a document.")] = 10_000,
    show: Annotated[bool, typer.Option("--show", help="Print some queries that found another one.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Plant the sentences, search for them, and print the figures."""
    texts = filler.read_text().splitlines() if filler else mixed_texts(_FILLER_TEXTS)
    planted = planted_sentences(_read_pairs(pairs), texts, max_words)
    figures: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory)) as stack,
        TextMatchClient(
            stack.addresses["matcher"], timeout_seconds=_MATCH_SECONDS, bulk_timeout_seconds=_BULK_SECONDS
        ) as client,
    ):
        started = time.perf_counter()
        client.ingest_all([one.document for one in planted], wait=True)
        figures["ingest_seconds"] = time.perf_counter() - started
        figures["characters"] = sum(len(one.document.text) for one in planted)
        counts: Counter[str] = Counter()
        for one in planted:
            counts += _judged(
                one, client.match(one.query, top_k=1).matches, show=show and counts["wrong"] < _SHOWN
            )
    rows = []
    for language in ("en", "zh"):
        if total := counts[f"documents {language}"]:
            names = ("first", "shown", "placed")
            shares = [counts[f"{name} {language}"] / total for name in names]
            rows.append([language, str(total), *(f"{share:.3f}" for share in shares)])
            figures |= {f"{name}_{language}": share for name, share in zip(names, shares, strict=True)}
    columns = ["language", "documents", "found first", "passage shown", "place right"]
    print_table(f"Planted sentences: {machine()}", columns, rows)
    write_figures(figures, json_path)


def _judged(planted: PlantedSentence, matches: Sequence[Match], *, show: bool) -> Counter[str]:
    counts = Counter({f"documents {planted.language}": 1})
    best = matches[0] if matches else None
    if best is None or best.document.id != planted.document.id:
        if show:
            found = "nothing" if best is None else f"{best.score:.3f} {best.passage.text[:80]!r}"
            typer.echo(
                f"wrong {planted.query} | {planted.document.text[planted.start : planted.end]} | {found}"
            )
        return counts + Counter(wrong=1)
    counts[f"first {planted.language}"] = 1
    counts[f"shown {planted.language}"] = int(planted.is_shown_by(best))
    counts[f"placed {planted.language}"] = int(planted.is_placed_by(best))
    return counts


def _read_pairs(path: Path | None) -> list[tuple[str, str]]:
    if path is None:
        return [(first.text, second.text) for first, second in planted_pairs(_TEMPLATES)]
    with path.open(encoding="utf-8", newline="") as file:
        return [(row[0], row[1]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


if __name__ == "__main__":
    typer.run(main)
