"""The split command: splits pair files at random. No sentence is in two parts, which prevents leaks."""

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
from training.data_files import ClassPair, FileFormat, read_class_pairs, write_rows
from training.settings import ColumnsOption, HeaderOption, short_path


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Options of the split command."""

    pairs: Annotated[list[Path], Option(help="File of pairs to split. Can be repeated.")]
    output: Annotated[Path, Option(help="Folder to write train.tsv and the other parts to.")]
    parts: Annotated[str, Option(help="Names of the parts and their shares.")] = "train=0.8,dev=0.1,test=0.1"
    header: HeaderOption = None
    columns: ColumnsOption = ""
    seed: Annotated[int, Option(min=0, help="Equal seeds give equal parts.")] = 1


def split_files(settings: SplitSettings) -> None:
    """Split files of pairs at random. Pairs that share a sentence stay together."""
    shares = _parse_shares(settings.parts)
    file_format = FileFormat.of_options(settings.header, settings.columns)
    pairs = [pair for path in settings.pairs for pair in read_class_pairs(path, file_format)]
    for name, part in split_pairs(pairs, shares, settings.seed).items():
        path = settings.output / f"{name}.tsv"
        count = write_rows(path, ((pair.first, pair.second, pair.label) for pair in part))
        echo(f"{short_path(path)}: {count:,} pairs")


def split_pairs(
    pairs: Sequence[ClassPair], shares: Mapping[str, float], seed: int
) -> dict[str, list[ClassPair]]:
    """The pairs of each part, in their order. `shares` sum to 1; groups are not split to meet them."""
    group_of = _groups(pairs)  # (pair,)
    sizes = np.bincount(group_of)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    part_of = np.empty(len(sizes), dtype=np.int64)
    names = list(shares)
    remaining = np.array([shares[name] * len(pairs) for name in names])
    # Large groups come first and go to the part with the most room: a group can exceed a small part.
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part = int(remaining.argmax())
        part_of[group] = part
        remaining[part] -= sizes[group]
    return {
        name: [pair for pair, group in zip(pairs, group_of, strict=True) if part_of[group] == number]
        for number, name in enumerate(names)
    }


def _groups(pairs: Sequence[ClassPair]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(pair,): the group of each pair. Pairs that are linked by common sentences are in one group."""
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
        raise InvalidInput.of_field("parts", "names must be letters and digits, and shares above 0")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise InvalidInput.of_field("parts", f"the shares must sum to 1, not to {sum(shares.values()):g}")
    return shares
