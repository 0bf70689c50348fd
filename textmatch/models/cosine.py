"""The cosine of two embeddings as a score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from textmatch.models.calibration import Calibration, Scores, calibrated
from textmatch.vectors import Embeddings


@dataclass(frozen=True)
class CosineScorer:
    """The cosine cut to 0..1, calibrated where the bi-encoder has a calibration."""

    calibration: Calibration | None = None

    def score(self, first: Embeddings, second: Embeddings) -> tuple[Scores, Scores]:
        """Score pairs of rows.

        Args:
            first: (count, dimension), rows of length 1; or (1, dimension) for one against all.
            second: (count, dimension), rows of length 1.

        Returns:
            Scores in 0..1, and the cosines in -1..1: both (count,).
        """
        cosines: Scores = np.clip((first * second).sum(axis=1), -1.0, 1.0)
        return calibrated(np.clip(cosines, 0.0, 1.0), self.calibration), cosines
