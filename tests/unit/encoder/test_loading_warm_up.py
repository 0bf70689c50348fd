from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from services.encoder.batching import BatchPolicy, EngineModel, Rows
from services.encoder.loading import _warmed_up, run_inline
from services.encoder.model_registry import RegistryEntry
from tests.support.length_model import texts_of
from textmatch.models.fast_tokenizer import TokenizedText

_POLICY = BatchPolicy(8_192, 0.1, 64, target_seconds=0.02)
_SHORT_TOKENS = 12


class TimedModel:
    """Its passes take `fixed` seconds and so many tokens per second, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens_per_second: float, fixed: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self._tokens_per_second = tokens_per_second
        self._fixed = fixed
        self._now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self._now)

    def forward(self, batch: Sequence[TokenizedText]) -> Rows:
        self.batches.append([text.token_count for text in batch])
        self._now += self._fixed + sum(self.batches[-1]) / self._tokens_per_second
        return np.zeros((len(batch), 1), dtype=np.float32)

    def warm_up(
        self,
        policy: BatchPolicy,
        longest_tokens: int,
        run_pass: Callable[[Callable[[], float]], float] = run_inline,
    ) -> EngineModel:
        short, longest = texts_of(_SHORT_TOKENS, longest_tokens)
        entry = RegistryEntry(None, EngineModel("timed", self.forward, short))
        return _warmed_up(entry, longest, policy, run_pass).engine_model

    def sizes(self) -> list[int]:
        return [sum(batch) for batch in self.batches]


@pytest.mark.parametrize(
    ("tokens_per_second", "budget_tokens"), [(20_000, 400), (100_000, 2_000), (10_000_000, 8_192)]
)
def test_batches_are_as_large_as_the_model_computes_in_the_target_time(
    monkeypatch: pytest.MonkeyPatch, tokens_per_second: float, budget_tokens: int
):
    model = TimedModel(monkeypatch, tokens_per_second)
    warm = model.warm_up(_POLICY, longest_tokens=128)
    assert warm.tokens_per_second == pytest.approx(tokens_per_second)
    assert _POLICY.for_speed(warm.tokens_per_second).token_budget == pytest.approx(budget_tokens, abs=1)
    assert max(model.sizes()) == pytest.approx(budget_tokens, abs=128)


def test_the_fixed_cost_of_a_pass_counts(monkeypatch: pytest.MonkeyPatch):
    warm = TimedModel(monkeypatch, 100_000, fixed=0.01).warm_up(_POLICY, longest_tokens=512)
    # 1,000 tokens take 20 ms.
    assert warm.tokens_per_second == pytest.approx(50_000)


def test_the_largest_batch_of_longest_texts_is_run(monkeypatch: pytest.MonkeyPatch):
    model = TimedModel(monkeypatch, 100_000)
    model.warm_up(_POLICY, longest_tokens=512)
    assert model.batches[-1] == [512] * 3


def test_a_text_longer_than_the_budget_is_run(monkeypatch: pytest.MonkeyPatch):
    model = TimedModel(monkeypatch, 20_000)
    model.warm_up(_POLICY, longest_tokens=8_000)
    assert model.batches[-1] == [8_000]
    assert sum(batch == [8_000] for batch in model.batches) == 1


def test_callers_do_not_wait_for_a_long_text_in_a_reload(monkeypatch: pytest.MonkeyPatch):
    model = TimedModel(monkeypatch, 20_000)
    model.warm_up(_POLICY, longest_tokens=8_000, run_pass=lambda run: run())
    assert max(model.sizes()) == 512
    assert model.batches[-1] == [400]


def test_few_short_texts_and_many_are_run(monkeypatch: pytest.MonkeyPatch):
    model = TimedModel(monkeypatch, 100_000)
    model.warm_up(_POLICY, longest_tokens=512)
    counts = [len(batch) for batch in model.batches if set(batch) == {_SHORT_TOKENS}]
    assert counts[:3] == [1, 2, 4]
    assert counts[-1] == 2_000 // _SHORT_TOKENS
    assert counts == sorted(counts)


def test_without_a_target_time_batches_are_full(monkeypatch: pytest.MonkeyPatch):
    model = TimedModel(monkeypatch, 1_000)
    model.warm_up(BatchPolicy(1_024, 0.1, 64), longest_tokens=64)
    assert max(model.sizes()) == 1_024


def test_each_pass_runs_in_the_thread_that_runs_models(monkeypatch: pytest.MonkeyPatch):
    model = TimedModel(monkeypatch, 100_000)
    passes: list[float] = []

    def run_pass(run: Callable[[], float]) -> float:
        before = len(model.batches)
        passes.append(run())
        assert len(model.batches) == before + 1
        return passes[-1]

    model.warm_up(_POLICY, longest_tokens=128, run_pass=run_pass)
    assert len(passes) == len(model.batches)
