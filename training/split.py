"""The split command: splits pair files at random into parts that are alike.

No sentence is in two parts, which prevents leaks. Each part has its share of every label and of groups of
every size. A threshold or calibration that is fitted on one part therefore holds for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from typer import Option, echo

from textmatch.errors import InvalidInput
from textmatch.io.data_files import FileFormat
from training.examples import ClassPair, one_line, read_class_pairs, write_rows
from training.labels import InvalidLabel, parse_score
from training.settings import ColumnsOption, HeaderOption, short_path

GroupBy: TypeAlias = Literal["both", "first", "second", "none"]

# More labels than this are scores, which are stratified in this many intervals of equal frequency.
_MAX_LABELS = 10
_SCORE_INTERVALS = 5
# Of the share that a part was to have, or of a label's share in points, before it is warned of or refused.
_MIN_PART = 0.5
_MAX_LABEL_SHIFT = 0.02
# Shares of smaller files are rough by nature.
_MIN_PAIRS_OF_PART = 10
_WEIGHT_OF_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Options of the split command."""

    pairs: Annotated[list[Path], Option(help="File of pairs to split. Can be repeated.")]
    output: Annotated[Path, Option(help="Folder to write train.tsv and the other parts to.")]
    parts: Annotated[str, Option(help="Names of the parts and their shares.")] = "train=0.8,dev=0.1,test=0.1"
    group_by: Annotated[
        GroupBy,
        Option(
            help="Which sentences of pairs must not be in two parts. first or second: for files in which one"
            " side has only a few sentences."
        ),
    ] = "both"
    header: HeaderOption = None
    columns: ColumnsOption = ""
    seed: Annotated[int, Option(min=0, help="Equal seeds give equal parts.")] = 1


def split_files(settings: SplitSettings) -> None:
    """Split files of pairs at random. Pairs that share a sentence stay together; labels keep their shares."""
    shares = _parse_shares(settings.parts)
    file_format = FileFormat.of_options(settings.header, settings.columns)
    pairs = [pair for path in settings.pairs for pair in read_class_pairs(path, file_format)]
    parts = split_pairs(pairs, shares, settings.seed, settings.group_by)
    for name, part in parts.items():
        path = settings.output / f"{name}.tsv"
        count = write_rows(path, ((pair.first, pair.second, pair.label) for pair in part))
        echo(f"{short_path(path)}: {count:,} pairs{_label_shares(part)}")
    for warning in _warnings(pairs, parts, shares):
        Console(stderr=True).print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def split_pairs(
    pairs: Sequence[ClassPair], shares: Mapping[str, float], seed: int, group_by: GroupBy = "both"
) -> dict[str, list[ClassPair]]:
    """The pairs of each part, in their order. `shares` sum to 1; groups are not split to meet them.

    Raises:
        InvalidInput: there are fewer groups than parts, or groups so large that a part lacks half its pairs.
    """
    group_of = _groups(pairs, group_by)  # (pair,)
    sizes = np.bincount(group_of)
    if len(pairs) < len(shares):
        raise InvalidInput.of_field("pairs", f"{len(pairs)} pairs cannot fill {len(shares)} parts")
    if len(sizes) < len(shares):
        raise _too_few_groups(sizes, len(pairs), f"{len(shares)} parts cannot be filled")
    counts = _counts(group_of, sizes, _strata([pair.label for pair in pairs]))  # (group, trait)
    part_of = _assign(counts, sizes, np.array(list(shares.values())), seed)
    parts = {
        name: [pair for pair, group in zip(pairs, group_of, strict=True) if part_of[group] == number]
        for number, name in enumerate(shares)
    }
    for name, part in parts.items():
        wanted = shares[name] * len(pairs)
        if wanted >= _MIN_PAIRS_OF_PART and len(part) < wanted * _MIN_PART:
            problem = f'the part "{name}" would have {len(part)} pairs instead of {wanted:.0f}'
            raise _too_few_groups(sizes, len(pairs), problem)
    return parts


def _assign(
    counts: NDArray[np.float64], sizes: NDArray[np.int64], shares: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """(group,): the part of each group. Each goes where it adds least to the chi-square of the whole split.

    Args:
        counts: (group, trait), the pairs of a group that have a trait.
        sizes: (group,), the pairs of a group.
        shares: (part,), sums to 1.
        seed: of the order of groups of one size.
    """
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    wanted = shares[:, np.newaxis] * counts.sum(axis=0)  # (part, trait)
    room = wanted.copy()
    part_of = np.empty(len(sizes), dtype=np.int64)
    # Large groups come first: small ones can make up for them.
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        # (found - wanted)² / wanted, summed over the traits, after minus before.
        part = int((counts[group] * (counts[group] - 2 * room) / wanted).sum(axis=1).argmin())
        part_of[group] = part
        room[part] -= counts[group]
    for part in range(len(shares)):
        if not (part_of == part).any():
            largest = np.bincount(part_of, minlength=len(shares)).argmax()
            members = np.flatnonzero(part_of == largest)
            part_of[members[sizes[members].argmin()]] = part
    return part_of


def _counts(
    group_of: NDArray[np.int64], sizes: NDArray[np.int64], strata: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(group, trait): how many pairs of a group have a label, in a group of that size and at all."""
    labels, groups = int(strata.max()) + 1, len(sizes)
    # 1, 2, 3 to 4, 5 to 8 pairs and so on.
    bucket_of = np.ceil(np.log2(sizes)).astype(np.int64)  # (group,)
    own = np.zeros((groups, int(bucket_of.max()) + 1, labels))
    np.add.at(own, (group_of, bucket_of[group_of], strata), 1.0)
    of_label = own.sum(axis=1)  # (group, label)
    # Where they conflict, the sizes of the parts matter most.
    of_all = np.repeat(sizes[:, np.newaxis], _WEIGHT_OF_SIZE, axis=1)
    table = np.concatenate((own.reshape(groups, -1), of_label, of_all), axis=1)
    found: NDArray[np.float64] = table[:, table.any(axis=0)]
    return found


def _strata(labels: Sequence[str]) -> NDArray[np.int64]:
    """(pair,): the number of its label; of its interval, if the labels are scores."""
    names = sorted(set(labels))
    if len(names) > _MAX_LABELS:
        try:
            scores = np.array([parse_score(label, None) for label in labels])
        except InvalidLabel:
            pass
        else:
            limits = np.unique(np.quantile(scores, np.linspace(0, 1, _SCORE_INTERVALS + 1)[1:-1]))
            return np.searchsorted(limits, scores, side="right").astype(np.int64)
    number = {name: position for position, name in enumerate(names)}
    return np.array([number[label] for label in labels])


def _groups(pairs: Sequence[ClassPair], group_by: GroupBy) -> NDArray[np.int64]:
    """(pair,): the group of each pair. Pairs that are linked by common sentences are in one group."""
    numbers: dict[str, int] = {}
    ends = []
    for row, pair in enumerate(pairs):
        texts = {"first": [pair.first], "second": [pair.second], "both": [pair.first, pair.second]}
        # A pair is at least in the group of itself.
        keys = [one_line(text) for text in texts.get(group_by, [])] or [str(row)]
        found = [numbers.setdefault(key, len(numbers)) for key in keys]
        ends.append((found[0], found[-1]))
    first, second = np.array(ends).T
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(numbers), len(numbers)))
    group_of_sentence = connected_components(graph, directed=False)[1].astype(np.int64)
    groups: NDArray[np.int64] = group_of_sentence[first]
    return groups


def _too_few_groups(sizes: NDArray[np.int64], pair_count: int, problem: str) -> InvalidInput:
    return InvalidInput.of_field(
        "pairs",
        f"{problem}: pairs that share sentences stay together, and the largest of {len(sizes):,} such groups"
        f" has {sizes.max():,} of {pair_count:,} pairs. Use --group-by first or second to keep only the"
        " sentences of that side apart",
    )


def _label_shares(part: Sequence[ClassPair]) -> str:
    """`; 1: 54 %, 0: 46 %` of a part with few labels."""
    counts = Counter(pair.label for pair in part)
    if len(counts) > _MAX_LABELS:
        return ""
    return "; " + ", ".join(f"{label}: {count / len(part):.0%}" for label, count in counts.most_common())


def _warnings(
    pairs: Sequence[ClassPair], parts: Mapping[str, Sequence[ClassPair]], shares: Mapping[str, float]
) -> list[str]:
    """Where a part is far from its share of the pairs, or of a label."""
    found = []
    for name, part in parts.items():
        share = len(part) / len(pairs)
        if abs(share - shares[name]) > shares[name] * (1 - _MIN_PART):
            found.append(f"{name} has {share:.0%} of the pairs instead of {shares[name]:.0%}")
    whole = Counter(pair.label for pair in pairs)
    if len(whole) > _MAX_LABELS:
        return found
    for name, part in parts.items():
        own = Counter(pair.label for pair in part)
        for label, count in whole.items():
            shift = own[label] / len(part) - count / len(pairs)
            if abs(shift) > max(_MAX_LABEL_SHIFT, 1 / len(part)):
                shares_of_label = f"{own[label] / len(part):.0%} of {name}, {count / len(pairs):.0%} of all"
                found.append(f"the label {label} has {shares_of_label}")
    return found


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
