"""The model card of a finished run, with figures of the saved directory as it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textmatch.errors import InvalidInput
from textmatch.models.resolve import BI_ENCODER_ORGANISATION, find_model
from training.evaluation.pairs import MeasuredPairs, PairFile, measure_on_pairs, read_pair_file
from training.evaluation.resampling import Estimate
from training.evaluation.systems import (
    CharacterTfidf,
    System,
    is_cross_encoder,
    is_sentence_transformer,
    load_model_system,
)
from training.model_card import (
    THRESHOLDS,
    Figures,
    ModelCard,
    replace_section,
    thresholds_section,
    write_model_card,
)
from training.options import command_line, portable, short_name
from training.pairs import UNIT_RANGE, ScoreRange
from training.report import DataReport
from training.settings import RunSettings

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
            _figures(path, scored[path], files[path]) if path in scored else _plain_figures(path, figures)
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


def _figures(path: Path, scored: list[MeasuredPairs], file: PairFile | None) -> Figures:
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
