"""Models measured on labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textmatch.models.calibration import Scores
from textmatch.models.fast_tokenizer import Pair
from training.data_files import FileForm
from training.evaluation.bootstrap import REPEATS, Resampled, Values
from training.evaluation.pair_metrics import (
    Flags,
    PairSample,
    best_threshold,
    correct_by_halves,
    correct_by_threshold,
)
from training.evaluation.scorers import Scored, System
from training.pairs import AS_FOUND, UNIT_RANGE, ScoreRange, read_scored_pairs


@dataclass(frozen=True)
class PairFile:
    """Pairs with labels in 0..1, (count,); `is_positive` says which of them count as the same."""

    path: Path
    pairs: Sequence[Pair]
    labels: Values
    is_positive: Flags


@dataclass(frozen=True)
class MeasuredPairs:
    """One scorer's figures on one file. `scores` are (count,); accuracy is that of `threshold`."""

    name: str
    model_id: str
    scores: Values
    threshold: float
    figures: Resampled


def read_pair_file(
    path: Path, form: FileForm = AS_FOUND, score_range: ScoreRange = UNIT_RANGE, positive_from: float = 0.5
) -> PairFile:
    """All pairs of a file; labels from `positive_from` on, after they are brought into 0..1, are positive.

    Raises:
        InvalidInput: the file cannot be read as pairs with scores; the message names the place.
    """
    found = read_scored_pairs(path, form, score_range)
    labels = np.array([pair.score for pair in found])
    return PairFile(path, [(pair.first, pair.second) for pair in found], labels, labels >= positive_from)


def measure_on_pairs(
    system: System, test: PairFile, dev: PairFile | None = None, *, repeats: int = REPEATS, seed: int = 0
) -> list[MeasuredPairs]:
    """Each scorer of a model on a file; what is calibrated comes once as served, and once as it was before.

    Args:
        system: the model.
        test: what it is measured on.
        dev: what the threshold for the accuracy is chosen on; without it, each half of the test pairs is
            judged by the best threshold of the other half.
        repeats: resamples for the intervals.
        seed: decides the resamples and the halves.
    """
    on_test = _named(system, system.score(test.pairs))
    on_dev = _named(system, system.score(dev.pairs)) if dev else {}
    return [
        _measure(name, system.model_id, scores, on_dev.get(name), test, dev, repeats, seed)
        for name, scores in on_test.items()
    ]


def _measure(
    name: str,
    model_id: str,
    scores: Values,
    dev_scores: Values | None,
    test: PairFile,
    dev: PairFile | None,
    repeats: int,
    seed: int,
) -> MeasuredPairs:
    if dev is None or dev_scores is None:
        is_correct, threshold = correct_by_halves(scores, test.is_positive, seed)
    else:
        threshold = best_threshold(dev_scores, dev.is_positive)
        is_correct = correct_by_threshold(scores, test.is_positive, threshold)
    sample = PairSample(scores, test.labels, test.is_positive, is_correct)
    return MeasuredPairs(name, model_id, scores, threshold, sample.resampled(repeats=repeats, seed=seed))


def _named(system: System, found: Sequence[Scored]) -> dict[str, Values]:
    named: dict[str, Scores] = {}
    for scored in found:
        name = system.name if len(found) == 1 else f"{system.name} ({scored.scorer})"
        named[name] = scored.scores
        if scored.uncalibrated is not None:
            named[f"{name}, uncalibrated"] = scored.uncalibrated
    return {name: scores.astype(np.float64) for name, scores in named.items()}
