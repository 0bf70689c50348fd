"""The command `textmatch train calibrate`: scores of a model that mean what they say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from textmatch.console import print_json, print_line, print_table
from textmatch.errors import InvalidInput
from textmatch.models.calibration import Calibration
from textmatch.models.engines import AUTO
from textmatch.models.model_resolver import model_id
from training.calibration import FOLDS, MethodName, fit, precision_thresholds
from training.data_files import FileForm
from training.evaluation.bootstrap import Resampled, Values
from training.evaluation.commands import (
    ColumnsOption,
    DeviceOption,
    HeaderOption,
    JsonOption,
    PositiveOption,
    ScoreRangeOption,
    quieten_libraries,
    score_range_of,
)
from training.evaluation.pair_metrics import PairSample, correct_by_halves
from training.evaluation.pairs import PairFile, read_pair_file
from training.evaluation.report import Column, as_json, table, text
from training.evaluation.scorers import COSINE, CROSS_ENCODER, PAIR_CLASSIFIER, Scored, load_model_system
from training.model_card import CALIBRATION, THRESHOLDS, replace_section, sha256_of, thresholds_section
from training.options import short_name

_CHANGED = ("mse", "ece")


class ScorerName(StrEnum):
    """What in a model gives scores."""

    CROSS_ENCODER = CROSS_ENCODER
    PAIR_CLASSIFIER = PAIR_CLASSIFIER
    COSINE = COSINE


@dataclass(frozen=True)
class _Calibrated:
    """What came of a calibration; `after` is of pairs that the map was not fitted on."""

    model_id: str
    before: Resampled
    after: Resampled
    scores: Values


def calibrate(
    model: Annotated[Path, typer.Argument(help="Directory of a model; the calibration is written into it.")],
    dev: Annotated[Path, typer.Option(help="Pairs with labels that the model was not trained on.")],
    method: Annotated[
        MethodName, typer.Option(help="logistic: two numbers, for few pairs; isotonic: any rising map.")
    ] = MethodName.LOGISTIC,
    scorer: Annotated[
        ScorerName | None, typer.Option(help="Of a bi-encoder with a pair classifier: which of its scores.")
    ] = None,
    score_range: ScoreRangeOption = (0.0, 1.0),
    positive_from: PositiveOption = 0.5,
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Fit a rising map from a model's scores to labels, and store it in the model's directory.

    The encoder applies it to scores; raw scores stay. The model's id changes: calibrate before ingesting.
    """
    if not model.is_dir():
        raise InvalidInput.of_field("MODEL", f'"{model}" is no directory')
    form = FileForm(header, tuple(columns.split(",")) if columns else ())
    file = read_pair_file(dev, form, score_range_of(score_range), positive_from)
    quieten_libraries()
    done = _calibrate(model, file, method, scorer, device)
    thresholds = precision_thresholds(done.scores, file.is_positive)
    shown = [
        Column("before", "", done.before, {}),
        Column(f"after, {FOLDS}-fold cross-validation", done.model_id, done.after, {}),
    ]
    if as_json_document:
        print_json(
            {
                "model_id": done.model_id,
                "method": method.value,
                "pairs": len(file.pairs),
                "before": as_json(shown)[0]["metrics"],
                "after": as_json(shown)[1]["metrics"],
                "thresholds": {
                    f"{precision:g}": found and {"score": found.score, "recall": found.recall}
                    for precision, found in thresholds.items()
                },
            }
        )
        return
    print_line(f"{model}, {method.value} calibration on {len(file.pairs)} pairs")
    print_table(table(shown))
    for precision, found in thresholds.items():
        reached = f"score {found.score:.4f}, recall {found.recall:.4f}" if found else "not reached"
        print_line(f"precision {precision:g}: {reached}")
    print_line(f"model id: {done.model_id}")


def _calibrate(
    directory: Path, file: PairFile, method: MethodName, scorer: ScorerName | None, device: str
) -> _Calibrated:
    system = load_model_system(str(directory), device)
    scored = _chosen(system.score(file.pairs), scorer)
    raw = scored.scores if scored.uncalibrated is None else scored.uncalibrated
    before = raw.astype(np.float64)
    fitted = fit(method, before, file.labels)
    calibration = Calibration(fitted.method, sha256_of(file.path))
    calibration.save(system.calibration_directory(scored.scorer))
    done = _Calibrated(
        model_id=model_id(system.name, system.directory),
        before=_measured(before, file),
        after=_measured(fitted.held_out_scores, file),
        scores=calibration.apply(raw).astype(np.float64),
    )
    replace_section(directory, CALIBRATION, _section(done, method, scored.scorer, file))
    replace_section(directory, THRESHOLDS, thresholds_section(done.scores, file.is_positive, file.path))
    return done


def _chosen(found: list[Scored], scorer: ScorerName | None) -> Scored:
    if scorer is None:
        return found[0]
    for scored in found:
        if scored.scorer == scorer:
            return scored
    names = ", ".join(scored.scorer for scored in found)
    raise InvalidInput.of_field("scorer", f"the model has no {scorer.value}; it has {names}")


def _measured(scores: Values, file: PairFile) -> Resampled:
    """What a map can change: it keeps the order of scores, and with it all figures of ranking."""
    is_correct, _ = correct_by_halves(scores, file.is_positive)
    figures = PairSample(scores, file.labels, file.is_positive, is_correct).resampled()
    return Resampled(
        {name: figures.values[name] for name in _CHANGED}, {name: figures.repeats[name] for name in _CHANGED}
    )


def _section(done: _Calibrated, method: MethodName, scorer: str, file: PairFile) -> str:
    def row(name: str, figures: Resampled) -> str:
        estimates = figures.estimates()
        return f"| {name} | {text(estimates['ece'])} | {text(estimates['mse'])} |"

    explanation = (
        f"Scores of the {scorer} go through a rising map ({method.value}), fitted on {short_name(file.path)} "
        f"({len(file.pairs)} pairs, SHA-256 `{sha256_of(file.path)}`). The figures after it are of "
        f"{FOLDS}-fold cross-validation on the same file: each pair by a map that was fitted without it."
    )
    rows = (row("before", done.before), row("after", done.after))
    return "\n".join(
        (explanation, "", "| scores | calibration error | mean squared error |", "|---|---|---|", *rows)
    )
