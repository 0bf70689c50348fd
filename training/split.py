"""Splits of pair files in which no sentence stands in two parts, so that nothing leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from typer import Option, echo

from textmatch.errors import InvalidInput
from training.data_files import FileForm, write_rows
from training.options import short_name
from training.pairs import ClassPair, read_class_pairs


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Of a split."""

    pairs: Annotated[list[Path], Option(help="File of pairs to split; may be given again.")]
    output: Annotated[Path, Option(help="Folder to write the parts to, as train.tsv and so on.")]
    parts: Annotated[str, Option(help="Names of the parts and their shares.")] = "train=0.8,dev=0.1,test=0.1"
    header: Annotated[
        bool | None, Option("--header/--no-header", help="Whether files begin with a header.")
    ] = None
    columns: Annotated[str, Option(help="Columns to read, by name or number from 1: 2,3,label.")] = ""
    seed: Annotated[int, Option(min=0, help="The same seed gives the same parts.")] = 1


def split_files(settings: SplitSettings) -> None:
    """Split files of pairs at random; pairs that share a sentence stay together."""
    shares = _parse_shares(settings.parts)
    form = FileForm(settings.header, tuple(settings.columns.split(",")) if settings.columns else ())
    pairs = [pair for path in settings.pairs for pair in read_class_pairs(path, form)]
    for name, part in split_pairs(pairs, shares, settings.seed).items():
        path = settings.output / f"{name}.tsv"
        count = write_rows(path, ((pair.first, pair.second, pair.label) for pair in part))
        echo(f"{short_name(path)}: {count:,} pairs")


def split_pairs(
    pairs: Sequence[ClassPair], shares: Mapping[str, float], seed: int
) -> dict[str, list[ClassPair]]:
    """Part -> its pairs, in their order; `shares` add up to 1 and are met as closely as the groups allow."""
    group_of = _groups(pairs)  # (pair,)
    sizes = np.bincount(group_of)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(sizes))
    part_of = np.empty(len(sizes), dtype=np.int64)
    names = list(shares)
    left = np.array([shares[name] * len(pairs) for name in names])
    # A large group goes first, to where most is missing: it may be larger than a small part.
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part = int(left.argmax())
        part_of[group] = part
        left[part] -= sizes[group]
    return {
        name: [pair for pair, group in zip(pairs, group_of, strict=True) if part_of[group] == number]
        for number, name in enumerate(names)
    }


def _groups(pairs: Sequence[ClassPair]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(pair,): a number for each pair; pairs that are linked by common sentences have the same."""
    numbers: dict[str, int] = {}
    first = np.array([numbers.setdefault(pair.first, len(numbers)) for pair in pairs])
    second = np.array([numbers.setdefault(pair.second, len(numbers)) for pair in pairs])
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(numbers), len(numbers)))
    group_of_sentence = connected_components(graph, directed=False)[1].astype(np.int64)
    groups: np.ndarray[tuple[int], np.dtype[np.int64]] = group_of_sentence[first]
    return groups


def _parse_shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise InvalidInput.of_field("parts", f'"{part}" is not NAME=SHARE, such as dev=0.1') from None
    if any(not name.isidentifier() or share <= 0 for name, share in shares.items()):
        raise InvalidInput.of_field("parts", "needs names of letters and digits, and shares above 0")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise InvalidInput.of_field("parts", f"the shares add up to {sum(shares.values()):g}, not to 1")
    return shares
