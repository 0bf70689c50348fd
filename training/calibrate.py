"""The command `textmatch train calibrate`: fits a map from a model's scores to its labels and stores it.

The map increases strictly, so it changes the values of the scores and not their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from textmatch.console import print_json, print_line, print_table
from textmatch.errors import InvalidInput
from textmatch.io.data_files import FileFormat
from textmatch.models.calibration import MAX_KNOTS, Calibration, Isotonic, Logistic, Method, logit
from textmatch.models.engines import AUTO
from textmatch.models.model_resolver import model_id
from textmatch.types import Scorer
from training.evaluation.bootstrap import BootstrapMetrics, Values
from training.evaluation.commands import ClassesOption, JsonOption, PositiveOption, quieten_libraries
from training.evaluation.pairs import (
    PairFile,
    PairSample,
    correct_by_folds,
    precision_thresholds,
    read_pair_file,
)
from training.evaluation.report import EvaluatedModel, as_json, format_estimate, table
from training.evaluation.scorers import ScoredPairs, load_model_system
from training.labels import ScoreRange
from training.model_card import CALIBRATION, THRESHOLDS, replace_section, sha256_of, thresholds_section
from training.settings import ColumnsOption, DeviceOption, HeaderOption, ScoreRangeOption, short_path

FOLDS = 5
# The map keeps this share of the score itself, so it increases where the isotonic fit is constant.
_SCORE_SHARE = 1e-3
# The metrics that a calibration changes. Those of ranking depend on the order of the scores only.
_CHANGED_METRICS = ("mse", "ece")


class CalibrationMethod(StrEnum):
    """The kinds of maps."""

    ISOTONIC = Isotonic.name
    LOGISTIC = Logistic.name


@dataclass(frozen=True)
class FittedCalibration:
    """A map, and the score (count,) of each pair by the map that was fitted without the pair's fold."""

    method: Method
    held_out_scores: Values


@dataclass(frozen=True)
class _CalibratedModel:
    """`scores` are those of the stored map; the metrics `after` are cross-validated."""

    model_id: str
    before: BootstrapMetrics
    after: BootstrapMetrics
    scores: Values


def calibrate(
    model: Annotated[Path, typer.Argument(help="Directory of a model; the calibration is written into it.")],
    dev: Annotated[Path, typer.Option(help="Pairs with labels that the model was not trained on.")],
    method: Annotated[
        CalibrationMethod,
        typer.Option(help="logistic: two parameters, for few pairs; isotonic: any increasing map."),
    ] = CalibrationMethod.LOGISTIC,
    scorer: Annotated[
        Scorer | None, typer.Option(help="Which scores of a bi-encoder with a pair classifier.")
    ] = None,
    score_range: ScoreRangeOption = (0.0, 1.0),
    classes: ClassesOption = "",
    positive_from: PositiveOption = 0.5,
    header: HeaderOption = None,
    columns: ColumnsOption = "",
    device: DeviceOption = AUTO,
    as_json_document: JsonOption = False,
) -> None:
    """Fit an increasing map from a model's scores to labels, and store it in the model's directory.

    The encoder applies it to scores; raw scores stay. The model's id changes: calibrate before ingesting.
    """
    if not model.is_dir():
        raise InvalidInput.of_field("MODEL", f'"{model}" is not a directory')
    file_format = FileFormat.of_options(header, columns)
    file = read_pair_file(dev, file_format, ScoreRange.of_option(score_range), positive_from, classes)
    quieten_libraries()
    done = _calibrate(model, file, method, scorer, device)
    thresholds = precision_thresholds(done.scores, file.is_positive)
    shown = [
        EvaluatedModel("before", "", done.before, {}),
        EvaluatedModel(f"after, {FOLDS}-fold cross-validation", done.model_id, done.after, {}),
    ]
    if as_json_document:
        before, after = as_json(shown)
        print_json(
            {
                "model_id": done.model_id,
                "method": method.value,
                "pairs": len(file.pairs),
                "before": before["metrics"],
                "after": after["metrics"],
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
    directory: Path, file: PairFile, method: CalibrationMethod, scorer: Scorer | None, device: str
) -> _CalibratedModel:
    system = load_model_system(str(directory), device)
    scored = _selected(system.score(file.pairs), scorer)
    raw = scored.scores if scored.uncalibrated is None else scored.uncalibrated
    before = raw.astype(np.float64)
    fitted = fit_calibration(method, before, file.labels)
    calibration = Calibration(fitted.method, sha256_of(file.path))
    calibration.save(system.calibration_directory(scored.scorer))
    done = _CalibratedModel(
        model_id=model_id(system.name, system.directory),
        before=_changed_metrics(before, file),
        after=_changed_metrics(fitted.held_out_scores, file),
        scores=calibration.apply(raw).astype(np.float64),
    )
    replace_section(directory, CALIBRATION, _section(done, method, scored.scorer, file))
    replace_section(directory, THRESHOLDS, thresholds_section(done.scores, file.is_positive, file.path))
    return done


def _selected(found: list[ScoredPairs], scorer: Scorer | None) -> ScoredPairs:
    if scorer is None:
        return found[0]
    for scored in found:
        if scored.scorer == scorer:
            return scored
    names = ", ".join(scored.scorer for scored in found)
    raise InvalidInput.of_field("scorer", f"the model has no {scorer.value}; it has {names}")


def _changed_metrics(scores: Values, file: PairFile) -> BootstrapMetrics:
    is_correct, _ = correct_by_folds(scores, file.is_positive)
    metrics = PairSample(scores, file.labels, file.is_positive, is_correct).bootstrap()
    return BootstrapMetrics(
        {name: metrics.values[name] for name in _CHANGED_METRICS},
        {name: metrics.repeats[name] for name in _CHANGED_METRICS},
    )


def _section(done: _CalibratedModel, method: CalibrationMethod, scorer: Scorer, file: PairFile) -> str:
    def row(name: str, metrics: BootstrapMetrics) -> str:
        estimates = metrics.estimates()
        return f"| {name} | {format_estimate(estimates['ece'])} | {format_estimate(estimates['mse'])} |"

    explanation = (
        f"Scores of the {scorer} pass through an increasing map ({method.value}), fitted on "
        f"{short_path(file.path)} ({len(file.pairs)} pairs, SHA-256 `{sha256_of(file.path)}`). The values "
        f"after it are from {FOLDS}-fold cross-validation on the same file: the map of each pair was fitted "
        "without the pair."
    )
    rows = (row("before", done.before), row("after", done.after))
    return "\n".join(
        (explanation, "", "| scores | calibration error | mean squared error |", "|---|---|---|", *rows)
    )


def fit_calibration(
    name: CalibrationMethod, scores: Values, labels: Values, seed: int = 0
) -> FittedCalibration:
    """Fit a map on scores and labels in 0..1, (count,) each.

    Raises:
        InvalidInput: there are too few pairs for the folds, or labels do not increase with the scores.
    """
    if len(scores) < 2 * FOLDS:
        raise InvalidInput.of_field("dev", f"has {len(scores)} pairs; a calibration needs {2 * FOLDS}")
    fit_method = _FITS[name]
    folds = np.random.default_rng(seed).permutation(len(scores)) % FOLDS
    held_out = np.empty_like(scores)
    for fold in range(FOLDS):
        is_own = folds == fold
        held_out[is_own] = fit_method(scores[~is_own], labels[~is_own])(scores[is_own])
    return FittedCalibration(fit_method(scores, labels), held_out)


def _fit_isotonic(scores: Values, labels: Values) -> Isotonic:
    """Isotonic regression with each step reduced to its middle, and linear interpolation between them.

    The map is constant, apart from the share of the score, below the first middle and above the last.
    """
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(scores, labels)
    steps = fitted.predict(scores)
    values, step_of = np.unique(steps, return_inverse=True)
    if len(values) < 2:
        raise _not_increasing()
    middles = np.bincount(step_of, weights=scores) / np.bincount(step_of)
    if len(values) > MAX_KNOTS - 2:
        kept = np.linspace(0, len(values) - 1, MAX_KNOTS - 2).astype(np.int64)
        middles, values = middles[kept], values[kept]
    knots = np.concatenate(([0.0], middles, [1.0]))
    mapped = (1 - _SCORE_SHARE) * np.concatenate((values[:1], values, values[-1:])) + _SCORE_SHARE * knots
    # A step whose middle is 0 or 1 coincides with the end of the range.
    is_new = np.concatenate(([True], np.diff(knots) > 0))
    return Isotonic(tuple(knots[is_new].tolist()), tuple(mapped[is_new].tolist()))


def _fit_logistic(scores: Values, labels: Values) -> Logistic:
    """Logistic regression on the logits of the scores. A label of 0.7 counts as 70 % positive."""
    if not 0.0 < labels.mean() < 1.0:
        raise _not_increasing()
    logits = logit(scores)
    model = LogisticRegression(C=np.inf).fit(
        np.concatenate((logits, logits))[:, np.newaxis],
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate((labels, 1 - labels)),
    )
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        raise _not_increasing()
    return Logistic(slope, float(model.intercept_[0]))


def _not_increasing() -> InvalidInput:
    problem = "its labels do not increase with the model's scores, so there is nothing to calibrate"
    return InvalidInput.of_field("dev", problem)


_FITS: dict[CalibrationMethod, Callable[[Values, Values], Method]] = {
    CalibrationMethod.ISOTONIC: _fit_isotonic,
    CalibrationMethod.LOGISTIC: _fit_logistic,
}
