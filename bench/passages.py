"""What long documents cost and win: `python -m bench.passages planted` and `concatenated DIR…`.

`planted [--pairs FILE] [--filler FILE] [--max-words 10000]`: each document has one sentence of a pair,
somewhere among filler sentences. The other sentence of the pair, which means the same, must find it. Prints
how many documents come first, how many of these show the passage that has the sentence, and whether its place
is right. Documents have 10 to `--max-words` words, evenly on a logarithmic scale; a Chinese character counts
as half a word.

Without files, the pairs are those of `bench/data/paraphrases.tsv`, one of each kind, and the filler is
English.

`concatenated DIR…`: each DIR is a retrieval set (corpus.jsonl, queries.jsonl, qrels.tsv). Its documents are
stored alone, and ten of them as one long document. In both collections, queries rank the groups of ten, by
the best document or the best passage, so the two nDCG@10 can be compared.
"""

from __future__ import annotations

import csv
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.duplicates import planted_pairs
from bench.report import JsonFile, machine, mixed_texts, print_table, write_figures
from bench.servers import running_stack
from textmatch.client import Document, Match, Rerank, TextMatchClient
from textmatch.collection_config import DEFAULT_COLLECTION, DEFAULT_PASSAGE_TOKENS, CollectionConfig
from textmatch.ranking_metrics import ndcg
from training.evaluation.retrieval import RetrievalSet, read_retrieval_set

_TEMPLATES = 60
_FILLER_TEXTS = 5_000
_MIN_WORDS = 10
_BULK_SECONDS = 3_600.0
_MATCH_SECONDS = 60.0
_SHOWN = 10
_GROUP_SIZE = 10
_TOP_K = 10
_GROUP = "group"


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


app = typer.Typer(add_completion=False)


@app.command()
def planted(
    pairs: Annotated[Path | None, typer.Option(help="TSV without a header: two sentences of a pair.")] = None,
    filler: Annotated[Path | None, typer.Option(help="A text in each line.")] = None,
    max_words: Annotated[int, typer.Option(min=_MIN_WORDS, help="Of a document.")] = 10_000,
    passage_tokens: Annotated[int, typer.Option(help="Of the collection.")] = DEFAULT_PASSAGE_TOKENS,
    show: Annotated[bool, typer.Option("--show", help="Print some queries that found another one.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Plant the sentences, search for them, and print the figures."""
    texts = filler.read_text().splitlines() if filler else mixed_texts(_FILLER_TEXTS)
    sentences = planted_sentences(_read_pairs(pairs), texts, max_words)
    figures: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory)) as stack,
        TextMatchClient(
            stack.addresses["matcher"], timeout_seconds=_MATCH_SECONDS, bulk_timeout_seconds=_BULK_SECONDS
        ) as client,
    ):
        client.create_collection(CollectionConfig(DEFAULT_COLLECTION, passage_tokens=passage_tokens))
        started = time.perf_counter()
        client.ingest_all([one.document for one in sentences], wait=True)
        figures["ingest_seconds"] = time.perf_counter() - started
        figures["characters"] = sum(len(one.document.text) for one in sentences)
        counts: Counter[str] = Counter()
        for one in sentences:
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


@app.command()
def concatenated(
    directories: Annotated[list[Path], typer.Argument(help="Retrieval sets.")],
    passage_tokens: Annotated[int, typer.Option(help="Of the collections.")] = DEFAULT_PASSAGE_TOKENS,
    rerank: Annotated[bool, typer.Option("--rerank", help="Score pairs too, where that pays.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Store both collections of each set, search, and print the figures."""
    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory, running_stack(Path(directory)) as stack:
        for number, path in enumerate(directories):
            one = read_retrieval_set(path)
            scores = {}
            for name, documents in (("alone", _alone(one)), ("concatenated", _concatenated(one))):
                config = CollectionConfig(f"{name}-{number}", passage_tokens=passage_tokens)
                with TextMatchClient(
                    stack.addresses["matcher"], collection=config.name, bulk_timeout_seconds=_BULK_SECONDS
                ) as client:
                    client.create_collection(config)
                    client.ingest_all(documents, wait=True)
                    scores[name] = _ndcg(client, one, is_grouped=name == "alone", rerank=rerank)
            figures |= {f"ndcg@10.{path.name}.{name}": score for name, score in scores.items()}
            difference = scores["concatenated"] - scores["alone"]
            rows.append([path.name, *(f"{score:.3f}" for score in scores.values()), f"{difference:+.3f}"])
    columns = ["set", "nDCG@10 alone", "concatenated", "difference"]
    print_table(f"Groups of {_GROUP_SIZE} documents: {machine()}", columns, rows)
    write_figures(figures, json_path)


def _alone(one: RetrievalSet) -> list[Document]:
    return [
        Document(str(at), text, {_GROUP: str(at // _GROUP_SIZE)})
        for at, text in enumerate(one.documents)
        if text.strip()
    ]


def _concatenated(one: RetrievalSet) -> list[Document]:
    starts = range(0, len(one.documents), _GROUP_SIZE)
    texts = ["\n\n".join(one.documents[start : start + _GROUP_SIZE]) for start in starts]
    return [Document(str(group), text) for group, text in enumerate(texts) if text.strip()]


def _ndcg(client: TextMatchClient, one: RetrievalSet, *, is_grouped: bool, rerank: bool) -> float:
    """The mean over the queries, in which the grade of a group is the highest one of its documents."""
    group_by, mode = (_GROUP if is_grouped else ""), (Rerank.AUTO if rerank else Rerank.NONE)
    answers = client.batch_match(one.queries, top_k=_TOP_K, group_by=group_by, rerank=mode)
    scores = []
    for answer, grades in zip(answers, one.grades, strict=True):
        if answer.result is None:
            raise RuntimeError(f"query {answer.query_index}: {answer.error}")
        found = [int(match.document.attributes.get(_GROUP, match.document.id)) for match in answer.result]
        scores.append(_query_ndcg(found, grades))
    return float(np.mean(scores))


def _query_ndcg(found: Sequence[int], grades: Mapping[int, float]) -> float:
    best: dict[int, float] = {}
    for at, grade in grades.items():
        best[at // _GROUP_SIZE] = max(grade, best.get(at // _GROUP_SIZE, 0.0))
    nothing = [0.0] * _TOP_K
    gained = [best.get(group, 0.0) for group in found] + nothing
    ideal = sorted(best.values(), reverse=True) + nothing
    return float(ndcg(np.array([gained]), np.array([ideal]), _TOP_K)[0])


if __name__ == "__main__":
    app()
