"""The model card, README.md in a model's directory: training data, evaluation, command and limits.

Its metrics are those of the saved directory, loaded as the encoder loads it, next to the base model's and the
baseline's.
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
from training.data_report import DataReport
from training.evaluation.bootstrap import COVERAGE, Estimate, Values
from training.evaluation.pairs import (
    BINS,
    Flags,
    MeasuredPairs,
    PairFile,
    measure_on_pairs,
    precision_thresholds,
    read_pair_file,
)
from training.evaluation.report import format_estimate
from training.evaluation.scorers import (
    CharacterTfidf,
    System,
    is_cross_encoder,
    is_sentence_transformer,
    load_model_system,
)
from training.evaluators import ACCURACY
from training.settings import RunSettings, command_line, short_model_name, short_path

FILE_NAME = "README.md"
THRESHOLDS, CALIBRATION = "Thresholds", "Calibration"
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "scikit-learn")
_NOT_FOR_METADATA = re.compile(r"[^\w./-]")
_THIS_MODEL = "this model"

_TEMPLATE = """\
---
{metadata}
library_name: sentence-transformers
pipeline_tag: {card.tag}
---

# {card.title} based on {card.base_name}

{card.description}

## Data

| what | how much |
|---|---|
{data}

| training file | SHA-256 |
|---|---|
{training_files}

## Evaluation

{evaluation}

## Reproduce

    {card.command}

Environment: Python {python}, {libraries}, {machine}, PyTorch threads: {threads}.
The same seed gives the same weights with the same machine, threads and library versions.

## Licence

The weights derive from {card.base_name} and from the training data; the terms of both apply. {card.data_note}

## Limits

{limits}
"""

_LIMITS = (
    "Scores express similarity as the training data label it, not whether a text answers a question.",
    "The model was not evaluated on text lengths, languages and topics that the training data do not cover.",
)


_LSTM_CONFIG = "lstm_config.json"
_LSTM_LIMIT = (
    "sentence-transformers alone cannot run an LSTM after a transformer. With textmatch installed, call"
    " `textmatch.models.bi_encoder.feed_lstm(model)` after `model = SentenceTransformer(directory)`."
)


@dataclass(frozen=True)
class _Kind:
    title: str
    tag: str
    description: str


_EMBEDS = "Maps each text to a vector. The cosine of two vectors is the similarity of the texts."
_KINDS = {
    "regression": _Kind(
        "Regression cross-encoder",
        "text-ranking",
        "Reads a pair of texts in one sequence and predicts their similarity, 0..1. The score depends on the "
        "order of the two texts.",
    ),
    "siamese": _Kind("Siamese bi-encoder", "sentence-similarity", _EMBEDS),
    "cosent": _Kind("CoSENT bi-encoder", "sentence-similarity", _EMBEDS),
    "sbert": _Kind(
        "SBERT bi-encoder",
        "sentence-similarity",
        f"{_EMBEDS} A classifier over two vectors and their difference predicts the class of a pair.",
    ),
    "simcse": _Kind("SimCSE bi-encoder", "sentence-similarity", _EMBEDS),
    "mlm": _Kind(
        "Masked language model", "fill-mask", "A base model for the other recipes, not made for matching."
    ),
}


# By whether the student is a cross-encoder.
_DISTILLED = {
    True: _Kind(
        "Distilled cross-encoder",
        "text-ranking",
        "Reads a pair of texts in one sequence and scores it as its teacher does, 0..1. The score depends on "
        "the order of the two texts.",
    ),
    False: _Kind("Distilled bi-encoder", "sentence-similarity", _EMBEDS),
}


@dataclass(frozen=True)
class FileMetrics:
    """Metrics on one file by system and metric name, this model first.

    `pair_count` is None for metrics that are not of scored pairs.
    """

    path: Path
    pair_count: int | None
    systems: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card, except for the environment.

    `tag` is the hub's name of the task, `data` are (what, how much) texts on the training data.
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
    evaluation: Sequence[FileMetrics]


def write_card_of_run(
    recipe: str,
    settings: RunSettings,
    report: DataReport,
    metrics: Mapping[Path, Mapping[str, float]],
    base_name: str,
) -> list[str]:
    """Write the card into the output directory.

    Args:
        recipe: its name.
        settings: of the run.
        report: of the training data.
        metrics: the recipe's own metrics by evaluation file, for files whose labels are not scores.
        base_name: of the base model; empty if there was none.

    Returns:
        Where the base model or the baseline is better; the card says the same.
    """
    kind = _DISTILLED[is_cross_encoder(settings.output)] if recipe == "distill" else _KINDS[recipe]
    files = {}
    if recipe != "mlm":
        files = {path: file for path in metrics if (file := _read_as_pairs(path, settings, metrics[path]))}
    measured = _measure(settings, base_name, files)
    weaknesses = _weaknesses(measured)
    card = ModelCard(
        title=kind.title,
        tag=kind.tag,
        base_name=short_model_name(base_name) or "random weights",
        description=kind.description,
        data=report.lines(),
        data_note=settings.data_note,
        limits=[
            f"Inputs are truncated to {settings.max_length_tokens} tokens, a pair of texts as a whole.",
            *([_LSTM_LIMIT] if any(settings.output.rglob(_LSTM_CONFIG)) else []),
            *weaknesses,
        ],
        command=command_line(recipe, settings),
        training_files=settings.training_files,
        evaluation=[
            _metrics_of_pairs(files[path], measured[path]) if path in files else _metrics_of_recipe(path, own)
            for path, own in metrics.items()
        ],
    )
    write_model_card(card, settings.output)
    if settings.dev in files:
        dev = files[settings.dev]
        section = thresholds_section(measured[settings.dev][0].scores, dev.is_positive, dev.path)
        replace_section(settings.output, THRESHOLDS, section)
    return weaknesses


def write_model_card(card: ModelCard, directory: Path) -> Path:
    """Write `directory`/README.md and return its path."""
    path = directory / FILE_NAME
    path.write_text(
        _TEMPLATE.format(
            card=card,
            metadata=f'base_model: "{_NOT_FOR_METADATA.sub("-", card.base_name)}"',
            data="\n".join(f"| {what} | {how_much} |" for what, how_much in card.data),
            training_files="\n".join(
                f"| {short_path(file)} | `{sha256_of(file)}` |" for file in card.training_files
            ),
            evaluation=_evaluation_section(card.evaluation),
            python=platform.python_version(),
            libraries=", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
            machine=platform.machine(),
            threads=torch.get_num_threads(),
            limits="\n".join(f"* {limit}" for limit in (*_LIMITS, *card.limits)),
        ),
        encoding="utf-8",
    )
    return path


def thresholds_section(scores: Values, is_positive: Flags, path: Path) -> str:
    """The lowest scores at which pairs of a file are positive with a precision of 0.9 and of 0.95."""
    rows = [
        f"| {precision:g} | {found.score:.4f} | {found.recall:.4f} |"
        if found
        else f"| {precision:g} | not reached | |"
        for precision, found in precision_thresholds(scores, is_positive).items()
    ]
    return "\n".join(
        (
            f"Chosen on {short_path(path)}: {is_positive.sum()} of its {len(scores)} pairs are positive.",
            "",
            "| precision | lowest score | recall |",
            "|---|---|---|",
            *rows,
        )
    )


def replace_section(directory: Path, heading: str, body: str) -> None:
    """Put a section into `directory`/README.md, in place of the one with this heading if there is one."""
    path = directory / FILE_NAME
    whole = path.read_text(encoding="utf-8") if path.is_file() else f"# {directory.name}\n"
    section = f"## {heading}\n\n{body}\n"
    pattern = re.compile(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(whole):
        # A function, since backslashes in a replacement string are escapes.
        whole = pattern.sub(lambda _: f"{section}\n", whole, count=1)
    else:
        whole = f"{whole.rstrip()}\n\n{section}"
    path.write_text(f"{whole.rstrip()}\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_as_pairs(path: Path, settings: RunSettings, own: Mapping[str, float]) -> PairFile | None:
    """The file's pairs; None if its labels are not scores, or are more than two classes of a classifier."""
    try:
        file = read_pair_file(path, settings.pair_format, settings.range)
    except InvalidInput:
        return None
    are_classes = ACCURACY in own and len(np.unique(file.labels)) > 2
    return None if are_classes else file


def _measure(
    settings: RunSettings, base_name: str, files: Mapping[Path, PairFile]
) -> dict[Path, list[MeasuredPairs]]:
    """Metrics of this model, then of its base if that is made for matching, and of the baseline."""
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


def _metrics_of_pairs(file: PairFile, measured: Sequence[MeasuredPairs]) -> FileMetrics:
    own_id = measured[0].model_id
    systems = {_system_name(one, own_id): one.metrics.estimates() for one in measured}
    return FileMetrics(file.path, len(file.pairs), systems)


def _system_name(one: MeasuredPairs, own_id: str) -> str:
    if one.model_id != own_id:
        return short_model_name(one.name)
    # The scorer, in parentheses after the directory.
    return f"{_THIS_MODEL}{one.name[one.name.rfind(' (') :] if one.name.endswith(')') else ''}"


def _metrics_of_recipe(path: Path, metrics: Mapping[str, float]) -> FileMetrics:
    estimates = {name: Estimate(value, np.nan, np.nan) for name, value in metrics.items()}
    return FileMetrics(path, None, {_THIS_MODEL: estimates})


def _weaknesses(measured: Mapping[Path, Sequence[MeasuredPairs]]) -> list[str]:
    return [
        f"{short_model_name(other.name)} has a higher Spearman correlation on {short_path(path)}: "
        f"{other.metrics.values['spearman']:.4f} against {own.metrics.values['spearman']:.4f}."
        for path, (own, *others) in measured.items()
        for other in others
        if other.model_id != own.model_id
        and other.metrics.values["spearman"] > own.metrics.values["spearman"]
    ]


def _evaluation_section(evaluation: Sequence[FileMetrics]) -> str:
    if not evaluation:
        return "The model was not evaluated."
    notes = (
        f"In brackets: {COVERAGE:.0%} interval of resampled pairs. The threshold for the accuracy is "
        f"cross-validated. The calibration error (ece) is over {BINS} equal bins."
    )
    return "\n\n".join((notes, *map(_metrics_table, evaluation)))


def _metrics_table(metrics: FileMetrics) -> str:
    names = list(next(iter(metrics.systems.values())))
    count = f"{metrics.pair_count} pairs, " if metrics.pair_count else ""
    lines = [
        f"{short_path(metrics.path)}, {count}SHA-256 `{sha256_of(metrics.path)}`:",
        "",
        f"| | {' | '.join(metrics.systems)} |",
        f"|---|{'---|' * len(metrics.systems)}",
    ]
    for name in names:
        values = " | ".join(format_estimate(estimates[name]) for estimates in metrics.systems.values())
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)
