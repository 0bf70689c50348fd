from __future__ import annotations

import gc
import time

import pytest

from services.encoder.batching import BatchPolicy, EngineModel
from services.encoder.throughput import ModelSpeeds
from tests.support.length_model import LengthModel

_POLICY = BatchPolicy(8_192, 0.1, 64, target_seconds=0.02)


def _model(tokens_per_second: float = 0.0) -> EngineModel:
    return EngineModel(
        "any", LengthModel().forward, LengthModel().engine_model.sample, True, tokens_per_second
    )


def _budget(speeds: ModelSpeeds, model: EngineModel, *, is_bulk: bool = False) -> int:
    return speeds.policy(model, is_bulk=is_bulk).token_budget


def test_each_model_and_lane_has_its_own_speed():
    speeds = ModelSpeeds(_POLICY)
    fast, slow = _model(), _model()
    speeds.note(fast, 1_000, 0.01, is_bulk=False)
    speeds.note(slow, 1_000, 0.1, is_bulk=False)
    speeds.note(slow, 1_000, 0.2, is_bulk=True)
    assert speeds.seconds(fast, 5_000, is_bulk=False) == pytest.approx(0.05)
    assert speeds.seconds(slow, 5_000, is_bulk=False) == pytest.approx(0.5)
    assert speeds.seconds(slow, 5_000, is_bulk=True) == pytest.approx(1.0)


def test_before_a_lane_is_measured_the_other_one_or_the_warm_up_tells_the_speed():
    speeds = ModelSpeeds(_POLICY)
    unknown, warm = _model(), _model(tokens_per_second=100_000)
    assert not speeds.is_known(unknown, is_bulk=False)
    speeds.note(unknown, 1_000, 0.1, is_bulk=True)
    assert speeds.is_known(unknown, is_bulk=False)
    assert speeds.seconds(unknown, 1_000, is_bulk=False) == pytest.approx(0.1)
    speeds.note(warm, 1_000, 1.0, is_bulk=True)
    assert speeds.seconds(warm, 1_000, is_bulk=False) == pytest.approx(0.01)


def test_a_budget_follows_the_measured_speed():
    speeds = ModelSpeeds(_POLICY)
    model = _model(tokens_per_second=100_000)
    assert (_budget(speeds, model), speeds.batch_seconds(model, is_bulk=False)) == (2_000, 0.02)
    for _ in range(50):
        speeds.note(model, 1_000, 0.02, is_bulk=True)
    assert _budget(speeds, model, is_bulk=True) == pytest.approx(1_000, rel=0.01)
    assert _budget(speeds, model) == 2_000


def test_a_budget_settles_where_a_batch_takes_the_target_time():
    """A pass has a fixed cost: a smaller budget is slower by the token, and must not shrink for ever."""
    speeds = ModelSpeeds(_POLICY)
    model = _model(tokens_per_second=1_000_000)
    for _ in range(200):
        tokens = _budget(speeds, model)
        speeds.note(model, tokens, 0.005 + tokens / 100_000, is_bulk=False)
    assert _budget(speeds, model) == pytest.approx(1_500, rel=0.02)


def test_one_slow_batch_changes_little():
    speeds = ModelSpeeds(_POLICY)
    model = _model(tokens_per_second=100_000)
    speeds.note(model, 2_000, 10.0, is_bulk=False)
    assert 1_600 <= _budget(speeds, model) < 1_700


def test_a_budget_lowered_for_memory_stays_low():
    speeds = ModelSpeeds(_POLICY)
    model, other = _model(tokens_per_second=100_000), _model(tokens_per_second=100_000)
    speeds.lower_budget(model, 700)
    speeds.lower_budget(model, 900)
    assert (_budget(speeds, model), _budget(speeds, model, is_bulk=True)) == (700, 700)
    assert _budget(speeds, other) == 2_000
    speeds.lower_budget(model, 0)
    assert _budget(speeds, model) == 1


def test_the_interactive_share_is_that_of_recent_time(monkeypatch: pytest.MonkeyPatch):
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    speeds = ModelSpeeds(_POLICY)
    model = _model(tokens_per_second=100_000)
    assert speeds.interactive_share() == 0.0
    for _ in range(200):
        now += 0.1
        speeds.note(model, 5_000, 0.05, is_bulk=False)
        speeds.note(model, 5_000, 0.05, is_bulk=True)
    assert speeds.interactive_share() == pytest.approx(0.5, abs=0.05)
    now += 10.0
    assert speeds.interactive_share() < 0.01


def test_replaced_models_are_forgotten():
    speeds = ModelSpeeds(_POLICY)
    model = _model()
    speeds.note(model, 1_000, 0.1, is_bulk=False)
    speeds.lower_budget(model, 100)
    del model
    gc.collect()
    assert (len(speeds._measured), len(speeds._limits)) == (0, 0)
