from __future__ import annotations

import numpy as np
import pytest

from textmatch.models.calibration import class_scores, softmax

_LOGITS = np.array([[1.0, 3.0, 2.0], [900.0, -900.0, 0.0]], dtype=np.float32)


def test_probabilities_sum_to_1_however_large_the_logits():
    probabilities = softmax(_LOGITS)
    assert probabilities.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert probabilities[0] == pytest.approx([0.0900, 0.6652, 0.2447], abs=1e-4)
    assert probabilities[1] == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("labels", "position"),
    [
        (("contradiction", "entailment", "neutral"), 1),
        (("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), 0),
        (("LABEL_0", "LABEL_1", "LABEL_2"), 2),
    ],
)
def test_the_raw_score_is_the_logit_of_the_class_that_means_the_same(labels: tuple[str, ...], position: int):
    raw, probabilities = class_scores(_LOGITS, labels)
    assert 1 / (1 + np.exp(-raw[:1])) == pytest.approx(probabilities[:1, position])
    assert np.isfinite(raw).all()


def test_of_two_classes_it_is_the_difference_of_the_logits():
    raw, _ = class_scores(_LOGITS[:, :2], ("not_duplicate", "duplicate"))
    assert raw == pytest.approx([2.0, -1800.0])


def test_one_output_is_the_raw_score():
    raw, probabilities = class_scores(_LOGITS[:, :1], ())
    assert raw.tolist() == [1.0, 900.0]
    assert probabilities.shape == (2, 0)
