"""The groups command: turns groups of sentences into labelled pairs and into triples.

    textmatch train groups --groups training/data/groups_en.tsv --pairs pairs.tsv --triples triples.tsv

A near miss shares more words with the anchor than the far paraphrase does, so that comparing words ranks it
higher.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option, echo

from textmatch.errors import InvalidInput
from textmatch.io.columns import Column
from textmatch.io.data_files import DETECTED, FileFormat
from training.examples import ScoredPair, Triple, read_texts, write_rows
from training.settings import ColumnsOption, HeaderOption, short_path

_COLUMNS = [
    Column(name, (name.replace(" ", ""),))
    for name in ("kind", "anchor", "far paraphrase", "close paraphrase", "near miss", "same topic")
]


@dataclass(frozen=True)
class SentenceGroup:
    """An anchor, two paraphrases of it, and two sentences with another meaning.

    The far paraphrase has few words of the anchor, the close one most of them. The near miss has most of them
    too, and differs in what `kind` names, such as a number. The last one is about the same topic.
    """

    kind: str
    anchor: str
    far_paraphrase: str
    close_paraphrase: str
    near_miss: str
    same_topic: str


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """Options of the groups command."""

    groups: Annotated[
        list[Path],
        Option(
            help="File of kind, anchor, far and close paraphrase, near miss, same topic. Can be repeated."
        ),
    ]
    pairs: Annotated[
        Path | None, Option(help="File to write pairs with labels to, for regression and distill.")
    ] = None
    triples: Annotated[Path | None, Option(help="File to write triples to, for simcse --hard-negatives.")] = (
        None
    )
    near_miss_label: Annotated[
        float, Option(min=0.0, max=1.0, help="Label of a sentence with its near miss.")
    ] = 0.0
    header: HeaderOption = None
    columns: ColumnsOption = ""


def convert_groups(settings: GroupSettings) -> None:
    """Turn groups of an anchor, paraphrases and near misses into pairs with labels and into triples."""
    if settings.pairs is None and settings.triples is None:
        raise InvalidInput.of_field("pairs", "give --pairs, --triples or both: there is nothing to write")
    file_format = FileFormat.of_options(settings.header, settings.columns)
    groups = [group for path in settings.groups for group in read_groups(path, file_format)]
    if settings.pairs is not None:
        pairs = labelled_pairs(groups, settings.near_miss_label)
        rows = [(pair.first, pair.second, f"{pair.score:g}") for pair in pairs]
        _write(settings.pairs, ("sentence1", "sentence2", "label"), rows)
    if settings.triples is not None:
        triples = [(one.anchor, one.positive, one.negative) for one in group_triples(groups)]
        _write(settings.triples, ("anchor", "positive", "negative"), triples)


def read_groups(path: Path, file_format: FileFormat = DETECTED) -> list[SentenceGroup]:
    """All groups of a file, in order.

    Raises:
        InvalidInput: the file cannot be read, or a row lacks a text; messages name file, line and column.
    """
    return [SentenceGroup(*map(str.strip, texts)) for texts in read_texts(path, _COLUMNS, file_format)]


def labelled_pairs(groups: Iterable[SentenceGroup], near_miss_label: float = 0.0) -> list[ScoredPair]:
    """Twelve pairs of each group, six in both orders: three with the same meaning and three without."""
    pairs = []
    for group in groups:
        pairs += [
            ScoredPair(group.anchor, group.close_paraphrase, 1.0),
            ScoredPair(group.anchor, group.far_paraphrase, 1.0),
            ScoredPair(group.far_paraphrase, group.close_paraphrase, 1.0),
            ScoredPair(group.anchor, group.near_miss, near_miss_label),
            ScoredPair(group.far_paraphrase, group.near_miss, near_miss_label),
            ScoredPair(group.anchor, group.same_topic, 0.0),
        ]
    return [ordered for one in pairs for ordered in (one, ScoredPair(one.second, one.first, one.score))]


def group_triples(groups: Iterable[SentenceGroup]) -> list[Triple]:
    """Three triples of each group. The positive is the far paraphrase, which words alone do not find."""
    return [
        triple
        for group in groups
        for triple in (
            Triple(group.anchor, group.far_paraphrase, group.near_miss),
            Triple(group.anchor, group.far_paraphrase, group.same_topic),
            Triple(group.close_paraphrase, group.far_paraphrase, group.same_topic),
        )
    ]


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    write_rows(path, [header, *rows])
    echo(f"{short_path(path)}: {len(rows):,} rows")
