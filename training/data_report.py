"""Statistics of the training data, printed before training: labels, lengths, repeats, leaks, language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from textmatch.models.model_resolver import MULTILINGUAL_E5
from training.examples import read_class_pairs
from training.settings import RunSettings, short_path

_MAX_LABELS = 10
_SCORE_GROUPS = 5
_LENGTH_LIMITS = (8, 16, 32, 64, 128, 256)
# Texts whose tokens are counted, and how many tokens of each.
_TOKENIZED_TEXTS = 2_000
_TOKENS_PER_TEXT = 256
# Names and emoji are unknown now and then; of a language that the model does not read, most tokens are.
_MANY_UNKNOWN = 0.2
# A few questions, such as "hello", are asked everywhere.
_MANY_LEAKED = 0.1


@dataclass(frozen=True)
class TrainingRow:
    """The texts of one row, one or more, and its label; "" if it has none."""

    texts: tuple[str, ...]
    label: str = ""


@dataclass(frozen=True)
class DataLeak:
    """The part of an evaluation file that is also in the training data, in any order of a pair."""

    path: Path
    row_count: int
    leaked_row_count: int
    sentence_count: int
    leaked_sentence_count: int


@dataclass(frozen=True)
class DataReport:
    """Statistics of the training rows; `lengths` counts texts by their characters.

    `unknown_share` is the share of the tokens that the model does not know, None if it was not counted.
    `special_count` counts texts with special tokens such as [SEP].
    """

    row_count: int
    labels: tuple[tuple[str, int], ...]
    lengths: tuple[tuple[str, int], ...]
    repeated_count: int
    contradicted_count: int
    leaks: tuple[DataLeak, ...]
    unknown_share: float | None = None
    special_count: int = 0

    def lines(self) -> list[tuple[str, str]]:
        """The report as (what, how much) texts."""
        lines = [("rows", f"{self.row_count:,}"), ("characters per text", _shares(self.lengths))]
        if self.labels:
            lines.insert(1, ("labels", _shares(self.labels)))
        lines.append(("repeated rows", f"{self.repeated_count:,}"))
        if self.labels:
            lines.append(("rows with contradictory labels", f"{self.contradicted_count:,}"))
        if self.unknown_share is not None:
            lines.append(("tokens unknown to the model", f"{self.unknown_share:.1%}"))
        for leak in self.leaks:
            rows = f"{leak.leaked_row_count:,} of {leak.row_count:,} rows"
            sentences = f"{leak.leaked_sentence_count:,} of {leak.sentence_count:,} sentences"
            lines.append((f"of {short_path(leak.path)}, seen in training", f"{rows}, {sentences}"))
        return lines

    def warnings(self) -> list[str]:
        """What makes the model or its metrics worse than they seem."""
        found = []
        if (self.unknown_share or 0.0) >= _MANY_UNKNOWN:
            found.append(
                f"the model does not know {self.unknown_share:.0%} of the tokens and cannot learn to read"
                f" them; choose a --base that reads their language, such as {MULTILINGUAL_E5}"
            )
        if self.special_count:
            found.append(
                f"{self.special_count:,} texts contain special tokens of the model, such as [SEP], which it"
                " reads as control tokens; remove them from the texts"
            )
        for leak in self.leaks:
            if leak.leaked_row_count:
                found.append(
                    f"{leak.leaked_row_count:,} of the {leak.row_count:,} rows of {short_path(leak.path)} are"
                    " in the training data, which makes its metrics too good; see textmatch train split"
                )
            elif leak.leaked_sentence_count > _MANY_LEAKED * leak.sentence_count:
                found.append(
                    f"{leak.leaked_sentence_count / leak.sentence_count:.0%} of the sentences of"
                    f" {short_path(leak.path)} are in the training data; see textmatch train split"
                )
        return found

    def print_to(self, console: Console) -> None:
        """Print the report as a table, and its warnings."""
        table = Table("training data", "", highlight=True)
        for line in self.lines():
            table.add_row(*line)
        console.print(table)
        for warning in self.warnings():
            console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def report_data(
    settings: RunSettings,
    rows: Sequence[TrainingRow],
    tokenizer: Any,
    console: Console,
    other_sentences: Iterable[str] = (),
) -> DataReport:
    """Compare the training rows with the evaluation files and the model's vocabulary, and print the report.

    Args:
        settings: of the run.
        rows: the training rows.
        tokenizer: of the model to train.
        console: to print to.
        other_sentences: what the model learns from besides, such as the sentences of a warm-up.

    Raises:
        InvalidInput: an evaluation file cannot be read.
    """
    evaluated = {
        path: [(pair.first, pair.second) for pair in read_class_pairs(path, settings.pair_format)]
        for path in settings.evaluation_files
    }
    report = build_report(rows, evaluated, tokenizer, other_sentences)
    report.print_to(console)
    return report


def build_report(
    rows: Sequence[TrainingRow],
    evaluated: Mapping[Path, Sequence[tuple[str, ...]]],
    tokenizer: Any = None,
    other_sentences: Iterable[str] = (),
) -> DataReport:
    """Statistics of the training rows, and their overlap with each evaluation file.

    Args:
        rows: the training rows.
        evaluated: the texts of each row of each evaluation file.
        tokenizer: of the model, from transformers; any other does not count unknown and special tokens.
        other_sentences: what the model learns from besides.
    """
    labels_of: dict[frozenset[str], set[str]] = {}
    for row in rows:
        labels_of.setdefault(frozenset(row.texts), set()).add(row.label)
    texts = [text for row in rows for text in row.texts]
    sentences = {*texts, *other_sentences}
    return DataReport(
        row_count=len(rows),
        labels=_label_groups(Counter(row.label for row in rows if row.label)),
        lengths=_length_groups([len(text) for text in texts]),
        repeated_count=len(rows) - len(labels_of),
        contradicted_count=sum(len(labels_of[frozenset(row.texts)]) > 1 for row in rows),
        leaks=tuple(_leak(path, found, labels_of.keys(), sentences) for path, found in evaluated.items()),
        unknown_share=_unknown_share(texts, tokenizer),
        special_count=_special_count(sentences, tokenizer),
    )


def _special_count(texts: Iterable[str], tokenizer: Any) -> int:
    """How many texts contain a special token of the tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return 0
    tokens = [token for token in tokenizer.all_special_tokens if token]
    return sum(any(token in text for token in tokens) for text in texts)


def _unknown_share(texts: Sequence[str], tokenizer: Any) -> float | None:
    """Of the tokens of some texts, spread evenly; None if the tokenizer has no token for unknown text."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.unk_token_id is None:
        return None
    sample = list(texts[:: max(1, len(texts) // _TOKENIZED_TEXTS)])
    encoded = tokenizer(sample, add_special_tokens=False, truncation=True, max_length=_TOKENS_PER_TEXT)
    ids = [one for text_ids in encoded["input_ids"] for one in text_ids]
    return ids.count(tokenizer.unk_token_id) / max(1, len(ids))


def _leak(
    path: Path,
    rows: Sequence[tuple[str, ...]],
    seen_rows: AbstractSet[frozenset[str]],
    seen_sentences: AbstractSet[str],
) -> DataLeak:
    sentences = {sentence for row in rows for sentence in row}
    return DataLeak(
        path=path,
        row_count=len(rows),
        leaked_row_count=sum(frozenset(row) in seen_rows for row in rows),
        sentence_count=len(sentences),
        leaked_sentence_count=len(sentences & seen_sentences),
    )


def _label_groups(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    """Count by label. Scores, which have many values, are counted in intervals of equal width."""
    if len(counts) <= _MAX_LABELS:
        return tuple(sorted(counts.items()))
    try:
        scores = np.array([float(label) for label in counts.elements()])
    except ValueError:
        most = counts.most_common(_MAX_LABELS)
        return (*most, ("others", counts.total() - sum(count for _, count in most)))
    sizes, limits = np.histogram(scores, bins=_SCORE_GROUPS)
    return tuple(
        (f"{low:.2g} to {high:.2g}", int(size))
        for low, high, size in zip(limits, limits[1:], sizes, strict=False)
    )


def _length_groups(lengths: Sequence[int]) -> tuple[tuple[str, int], ...]:
    sizes, _ = np.histogram(lengths, bins=[0, *_LENGTH_LIMITS, np.inf])
    names = [f"{low} to {high - 1}" for low, high in pairwise((0, *_LENGTH_LIMITS))]
    names.append(f"{_LENGTH_LIMITS[-1]} or more")
    return tuple((name, int(size)) for name, size in zip(names, sizes, strict=True) if size)


def _shares(groups: Sequence[tuple[str, int]]) -> str:
    total = sum(size for _, size in groups)
    return ", ".join(f"{name}: {size:,} ({size / total:.0%})" for name, size in groups)
