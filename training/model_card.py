"""The README.md that is saved beside a model: what it is, how good, and how to make it again."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from training.calibration import precision_thresholds
from training.evaluation.pair_metrics import BINS, Flags
from training.evaluation.report import text
from training.evaluation.resampling import COVERAGE, Estimate, Values
from training.options import short_name

THRESHOLDS, CALIBRATION = "Thresholds", "Calibration"
FILE_NAME = "README.md"
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "scikit-learn")
_NOT_FOR_METADATA = re.compile(r"[^\w./-]")

_TEMPLATE = """\
---
{metadata}
library_name: sentence-transformers
pipeline_tag: {tag}
---

# {title} over {base_name}

{description}

## Data

| what | how much |
|---|---|
{data}

| trained on | SHA-256 |
|---|---|
{training_files}

## Figures

{figures}

## Make it again

    {command}

Environment: Python {python}, {libraries}, {machine}, PyTorch threads: {threads}.
The same seed gives the same weights with the same machine, threads and library versions.

## Licence

The weights derive from {base_name} and from the training data; the terms of both hold. {data_note}

## Limits

{limits}
"""

_LIMITS = (
    "It grades texts as its training data do; whether a text answers a question is another matter.",
    "Lengths, languages and subjects that the training data do not cover are unmeasured.",
)


@dataclass(frozen=True)
class Figures:
    """What was measured on one file: figures by the name of what was measured, this model first.

    `pair_count` is None where pairs are not what was measured.
    """

    path: Path
    pair_count: int | None
    rows: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class ModelCard:
    """What a model card says beside what the environment tells.

    `tag` is the hub's name of the task, `data` says in pairs what is in the training data and how much.
    """

    title: str
    tag: str
    base_name: str
    description: str
    data: Sequence[tuple[str, str]]
    data_note: str
    limits: Sequence[str]
    command: str
    training_files: Sequence[Path]
    figures: Sequence[Figures]


def write_model_card(card: ModelCard, directory: Path) -> Path:
    """Writes `directory`/README.md and returns its path."""
    base = card.base_name
    path = directory / FILE_NAME
    path.write_text(
        _TEMPLATE.format(
            metadata=f'base_model: "{_NOT_FOR_METADATA.sub("-", base)}"',
            tag=card.tag,
            title=card.title,
            base_name=base,
            description=card.description,
            data="\n".join(f"| {what} | {how_much} |" for what, how_much in card.data),
            training_files="\n".join(
                f"| {short_name(file)} | `{sha256_of(file)}` |" for file in card.training_files
            ),
            figures=_figures(card.figures),
            command=card.command,
            python=platform.python_version(),
            libraries=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
            machine=platform.machine(),
            threads=torch.get_num_threads(),
            data_note=card.data_note,
            limits="\n".join(f"* {limit}" for limit in (*_LIMITS, *card.limits)),
        ),
        encoding="utf-8",
    )
    return path


def thresholds_section(scores: Values, is_positive: Flags, path: Path) -> str:
    """Above which score pairs of a file are the same with a precision of 0.9 and of 0.95."""
    rows = [
        f"| {precision:g} | {found.score:.4f} | {found.recall:.4f} |"
        if found
        else f"| {precision:g} | not reached | |"
        for precision, found in precision_thresholds(scores, is_positive).items()
    ]
    return "\n".join(
        (
            f"Chosen on {short_name(path)}: {is_positive.sum()} of its {len(scores)} pairs are the same.",
            "",
            "| precision | least score | recall |",
            "|---|---|---|",
            *rows,
        )
    )


def replace_section(directory: Path, heading: str, body: str) -> None:
    """Puts a section into `directory`/README.md, in place of one with this heading."""
    path = directory / FILE_NAME
    whole = path.read_text(encoding="utf-8") if path.is_file() else f"# {directory.name}\n"
    section = f"## {heading}\n\n{body}\n"
    pattern = re.compile(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(whole):
        # A function, since in a text backslashes would be read.
        whole = pattern.sub(lambda _: f"{section}\n", whole, count=1)
    else:
        whole = f"{whole.rstrip()}\n\n{section}"
    path.write_text(f"{whole.rstrip()}\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _figures(measured: Sequence[Figures]) -> str:
    if not measured:
        return "Nothing was measured."
    notes = (
        f"In brackets {COVERAGE:.0%} of the resamples of the pairs. Accuracy is that of a threshold which "
        f"the other half of the pairs chose; the calibration error (ece) is over {BINS} equal bins."
    )
    return "\n\n".join((notes, *map(_figure_table, measured)))


def _figure_table(measured: Figures) -> str:
    names = list(next(iter(measured.rows.values())))
    count = f"{measured.pair_count} pairs, " if measured.pair_count else ""
    lines = [
        f"{short_name(measured.path)}, {count}SHA-256 `{sha256_of(measured.path)}`:",
        "",
        f"| | {' | '.join(measured.rows)} |",
        f"|---|{'---|' * len(measured.rows)}",
    ]
    lines += [
        f"| {name} | {' | '.join(text(figures[name]) for figures in measured.rows.values())} |"
        for name in names
    ]
    return "\n".join(lines)
