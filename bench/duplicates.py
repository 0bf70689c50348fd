"""FindDuplicates: `python -m bench.duplicates [--quick] [--documents 100000]`.

Among other documents stand 500 planted pairs of paraphrases, half of them English, half Chinese. They come
from `bench/data/paraphrases.tsv`: two sentences that mean the same, with a place for nine things. Pairs of
the same sentence with different things are near misses, which must not be found. Prints precision and recall
at the default score, with pair scores and without, and the documents compared in a second.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import running_stack
from textmatch.client import Document, TextMatchClient
from textmatch.types import DuplicateOptions
from textmatch.union_find import UnionFind

_FILE = Path(__file__).with_name("data") / "paraphrases.tsv"
_PAIRS = 500
_DOCUMENTS = 100_000
_QUICK_OTHERS = 300
_SCORES = (0.3, 0.4, DuplicateOptions.min_score, 0.6, 0.7, 0.8, 0.9, 0.95)
_BULK_SECONDS = 3_600.0
_SHOWN = 15


@dataclass(frozen=True)
class FoundPair:
    """Two ids, and the score of the pair."""

    ids: frozenset[str]
    score: float


def planted_pairs(count: int) -> list[tuple[Document, Document]]:
    """Pairs that mean the same: all templates with their first filler, then with the second, and so on."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        templates = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    pairs = []
    for turn in range(max(len(one["fillers"].split("|")) for one in templates)):
        for number, one in enumerate(templates):
            filler = one["fillers"].split("|")[turn]
            name = f"{one['language']}-{number}-{turn}"
            first, second = (one[side].format(filler) for side in ("first", "second"))
            pairs.append((Document(f"{name}-a", first), Document(f"{name}-b", second)))
    return pairs[:count]


def precision_and_recall(
    found: Sequence[FoundPair], planted: Sequence[tuple[Document, Document]], min_score: float
) -> tuple[float, float]:
    """Of the found pairs of planted documents with at least this score.

    Pairs with another document, and of two languages, have no judgement and do not count: many sentences are
    translations of each other.
    """
    wanted = {frozenset((one.id, other.id)) for one, other in planted}
    known = {document.id for pair in planted for document in pair}
    judged = {
        one.ids
        for one in found
        if one.score >= min_score and one.ids <= known and _are_of_one_language(one.ids)
    }
    right = len(judged & wanted)
    return right / max(1, len(judged)), right / max(1, len(wanted))


def _are_of_one_language(ids: frozenset[str]) -> bool:
    return len({one.partition("-")[0] for one in ids}) == 1


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A few hundred other documents.")] = False,
    documents: Annotated[int, typer.Option(help="How many documents, with the planted ones.")] = _DOCUMENTS,
    show: Annotated[bool, typer.Option("--show", help="Print some wrong and some missed pairs.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Plant the pairs, search for them, and print the figures."""
    planted = planted_pairs(_PAIRS)
    count = _QUICK_OTHERS if quick else max(0, documents - 2 * len(planted))
    texts = dict.fromkeys(mixed_texts(count + count // 10))
    others = [Document(f"other-{number}", text) for number, text in enumerate(texts)][:count]
    figures: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory)) as stack,
        TextMatchClient(stack.addresses["matcher"], bulk_timeout_seconds=_BULK_SECONDS) as client,
    ):
        client.ingest_all([*(one for pair in planted for one in pair), *others], wait=True)
        for rerank in (True, False):
            name = "pair_scores" if rerank else "embeddings"
            found, seconds, scored = _search(client, rerank=rerank)
            figures[f"documents_per_second_{name}"] = (2 * len(planted) + len(others)) / seconds
            figures[f"scored_pairs_{name}"] = scored
            figures |= _measured(found, planted, name)
            if show:
                _show(found, planted)
    write_figures(figures, json_path)


def _search(client: TextMatchClient, *, rerank: bool) -> tuple[list[FoundPair], float, int]:
    """All pairs down to the lowest score, the seconds that it took, and how many pairs were scored."""
    started, found, scored = time.perf_counter(), list[FoundPair](), 0
    for page in client.find_duplicates(min_score=min(_SCORES), rerank=rerank, omit_text=True):
        scored += page.scored_count
        found += [FoundPair(frozenset((pair.first.id, pair.second.id)), pair.score) for pair in page]
    return found, time.perf_counter() - started, scored


def _measured(
    found: Sequence[FoundPair], planted: Sequence[tuple[Document, Document]], name: str
) -> dict[str, float]:
    rows = []
    figures: dict[str, float] = {}
    for min_score in _SCORES:
        row = [f"{min_score:g}"]
        for language in ("en", "zh", ""):
            some = [pair for pair in planted if pair[0].id.startswith(language)]
            precision, recall = precision_and_recall(found, some, min_score)
            row += [f"{precision:.3f}", f"{recall:.3f}"]
            if min_score == DuplicateOptions.min_score:
                suffix = f"{name}_{language or 'all'}"
                figures |= {f"precision_{suffix}": precision, f"recall_{suffix}": recall}
        rows.append(row)
    columns = ["min_score"]
    for language in ("English", "Chinese", "both"):
        columns += [f"precision {language}", f"recall {language}"]
    print_table(f"Planted paraphrases, {name}: {machine()}", columns, rows)
    clusters = UnionFind[str]()
    for one in found:
        if one.score >= DuplicateOptions.min_score:
            clusters.join(*sorted(one.ids))
    groups = clusters.groups()
    figures[f"clusters_{name}"] = len(groups)
    figures[f"largest_cluster_{name}"] = len(groups[0]) if groups else 0
    return figures


def _show(found: Sequence[FoundPair], planted: Sequence[tuple[Document, Document]]) -> None:
    """Print the wrong pairs with the highest scores, and some that were missed."""
    wanted = {frozenset((one.id, other.id)): (one.text, other.text) for one, other in planted}
    texts = {one.id: one.text for pair in planted for one in pair}
    enough = [one for one in found if one.score >= DuplicateOptions.min_score]
    judged = [one for one in enough if one.ids <= texts.keys() and _are_of_one_language(one.ids)]
    wrong = [one for one in judged if one.ids not in wanted]
    for one in sorted(wrong, key=lambda pair: -pair.score)[:_SHOWN]:
        typer.echo(f"wrong {one.score:.3f} {' | '.join(texts[document] for document in sorted(one.ids))}")
    missed = wanted.keys() - {one.ids for one in enough}
    for ids in sorted(missed, key=sorted)[:_SHOWN]:
        typer.echo(f"missed {' | '.join(wanted[ids])}")


if __name__ == "__main__":
    typer.run(main)
