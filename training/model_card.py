"""The README.md that is saved beside a model: what it is, how good, and how to make it again.

The model card of a finished run, with figures of the saved directory as it is served.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from textmatch.errors import InvalidInput
from textmatch.models.model_resolver import BI_ENCODER_ORGANISATION, find_model
from training.calibration import precision_thresholds
from training.data_report import DataReport
from training.evaluation.bootstrap import COVERAGE, Estimate, Values
from training.evaluation.pair_metrics import BINS, Flags
from training.evaluation.pairs import MeasuredPairs, PairFile, measure_on_pairs, read_pair_file
from training.evaluation.report import text
from training.evaluation.scorers import (
    CharacterTfidf,
    System,
    is_cross_encoder,
    is_sentence_transformer,
    load_model_system,
)
from training.options import command_line, portable, short_name
from training.pairs import UNIT_RANGE, ScoreRange
from training.settings import RunSettings

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


_THIS_MODEL = "this model"


@dataclass(frozen=True)
class _Kind:
    title: str
    tag: str
    description: str


_EMBEDS = "Turns each text into a vector; the cosine of two vectors says how similar the texts are."
_KINDS = {
    "regression": _Kind(
        "Regression cross-encoder",
        "text-ranking",
        "Reads a pair of texts in one sequence and says how similar their meanings are, 0..1. "
        "The two orders of a pair do not score the same.",
    ),
    "siamese": _Kind("Siamese bi-encoder", "sentence-similarity", _EMBEDS),
    "sbert": _Kind(
        "SBERT bi-encoder",
        "sentence-similarity",
        f"{_EMBEDS} A classifier over two vectors and their difference says which class a pair is of.",
    ),
    "simcse": _Kind("SimCSE bi-encoder", "sentence-similarity", _EMBEDS),
    "mlm": _Kind(
        "Masked language model", "fill-mask", "A base for the other recipes; it is not made for matching."
    ),
}


def write_card_of_run(
    recipe: str,
    settings: RunSettings,
    report: DataReport,
    measured: Mapping[Path, Mapping[str, float]],
    base_name: str,
) -> None:
    """Writes the card into the output directory.

    Args:
        recipe: its name.
        settings: of the run.
        report: what is in the training data.
        measured: what the recipe measured by, for files whose labels are no scores.
        base_name: of the base model; empty if there was none.
    """
    kind = _KINDS[recipe]
    base = portable(base_name)
    files = {path: _as_pairs(path, settings) for path in measured} if recipe != "mlm" else {}
    scored = _scored(settings, base_name, {path: file for path, file in files.items() if file})
    card = ModelCard(
        title=kind.title,
        tag=kind.tag,
        base_name=base or "nothing",
        description=kind.description,
        data=report.lines(),
        data_note=settings.data_note,
        limits=[
            f"A text, or a pair that is read together, is cut at {settings.max_length_tokens} tokens.",
            *_lost(scored),
        ],
        command=command_line(recipe, settings),
        training_files=settings.files_learnt_from,
        figures=[
            _described_figures(path, scored[path], files[path])
            if path in scored
            else _plain_figures(path, figures)
            for path, figures in measured.items()
        ],
    )
    write_model_card(card, settings.output)
    if settings.dev in scored and (dev := files[settings.dev]):
        section = thresholds_section(scored[settings.dev][0].scores, dev.is_positive, dev.path)
        replace_section(settings.output, THRESHOLDS, section)


def _scored(
    settings: RunSettings, base_name: str, files: Mapping[Path, PairFile]
) -> dict[Path, list[MeasuredPairs]]:
    """This model first, then its base if that is made for matching, then the baseline; for each file."""
    if not files:
        return {}
    systems: list[System] = [load_model_system(str(settings.output), settings.device)]
    if base_name:
        base = find_model(base_name, BI_ENCODER_ORGANISATION)
        if is_sentence_transformer(base) or is_cross_encoder(base):
            systems.append(load_model_system(base_name, settings.device))
    systems.append(CharacterTfidf())
    return {
        path: [one for system in systems for one in measure_on_pairs(system, file)]
        for path, file in files.items()
    }


def _as_pairs(path: Path, settings: RunSettings) -> PairFile | None:
    """The file's pairs; None if its labels are no scores, but classes."""
    limits = getattr(settings, "score_range", None)
    try:
        return read_pair_file(path, settings.form, ScoreRange(*limits) if limits else UNIT_RANGE)
    except InvalidInput:
        return None


def _described_figures(path: Path, scored: list[MeasuredPairs], file: PairFile | None) -> Figures:
    own = scored[0].model_id
    rows = {_row_name(one, own): one.figures.estimates() for one in scored}
    return Figures(path, len(file.pairs) if file else 0, rows)


def _row_name(one: MeasuredPairs, own_model_id: str) -> str:
    if one.model_id != own_model_id:
        return portable(one.name)
    # What stands behind the directory says which of the model's scores it is.
    return f"{_THIS_MODEL}{one.name[one.name.rfind(' (') :] if one.name.endswith(')') else ''}"


def _plain_figures(path: Path, measured: Mapping[str, float]) -> Figures:
    return Figures(
        path, None, {_THIS_MODEL: {name: Estimate(value, np.nan, np.nan) for name, value in measured.items()}}
    )


def _lost(scored: Mapping[Path, list[MeasuredPairs]]) -> list[str]:
    return [
        f"On {short_name(path)} {portable(other.name)} orders pairs better."
        for path, (own, *others) in scored.items()
        for other in others
        if other.model_id != own.model_id
        and other.figures.values["spearman"] > own.figures.values["spearman"]
    ]
