"""Where a training may be interrupted, and when its loss is said to rise."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from training.fit import InterruptCallback, TrainingInterrupted, _rise_of_loss

STATE, CONTROL = TrainerState(), TrainerControl()


def _interrupt() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)
    handler(signal.SIGTERM, None)


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))


def _interrupted_evaluation(interrupt: InterruptCallback) -> None:
    with interrupt.window():
        _draw()
        _interrupt()


def test_a_step_that_was_begun_is_discarded():
    """It may take longer than anyone waits. The generators are those of its beginning."""
    with InterruptCallback() as interrupt:
        interrupt.on_step_begin(None, STATE, CONTROL)
        before = _draw()
        with pytest.raises(TrainingInterrupted):
            _interrupt()
        interrupt.restore_random_state()
        assert _draw() == before


def test_the_optimizer_is_not_interrupted():
    with InterruptCallback() as interrupt:
        interrupt.on_step_begin(None, STATE, CONTROL)
        interrupt.on_pre_optimizer_step(None, STATE, CONTROL)
        _interrupt()
        after_the_step = random.getstate()
        with pytest.raises(TrainingInterrupted):
            interrupt.on_step_end(None, STATE, CONTROL)
        interrupt.restore_random_state()
        assert random.getstate() == after_the_step


def test_an_evaluation_is_interrupted_and_does_not_begin_afterwards():
    with InterruptCallback() as interrupt:
        with interrupt.window():
            pass
        _interrupt()
        with pytest.raises(TrainingInterrupted), interrupt.window():
            pytest.fail("was entered")
    before = random.getstate()
    with InterruptCallback() as interrupt:
        with pytest.raises(TrainingInterrupted):
            _interrupted_evaluation(interrupt)
        interrupt.restore_random_state()
    assert random.getstate() == before


def test_processes_that_wait_for_each_other_end_together():
    with InterruptCallback(can_raise=False) as interrupt:
        interrupt.on_step_begin(None, STATE, CONTROL)
        _interrupt()
        interrupt.on_pre_optimizer_step(None, STATE, CONTROL)
        with pytest.raises(TrainingInterrupted):
            interrupt.on_step_end(None, STATE, CONTROL)


def test_the_second_signal_acts_as_usual():
    usual = signal.getsignal(signal.SIGTERM)
    with InterruptCallback() as interrupt:
        _interrupt()
        assert signal.getsignal(signal.SIGTERM) is usual
        assert interrupt.is_interrupted
    assert signal.getsignal(signal.SIGTERM) is usual


def _history(*losses: float) -> list[dict[str, float]]:
    return [{"loss": loss, "step": step} for step, loss in enumerate(losses)]


def test_a_loss_that_rises_is_warned_of():
    assert _rise_of_loss(_history(1.0, 1.1, 1.6, 2.0)) == (
        "the loss rose from 1 to 2: lower the learning rate"
    )
    assert _rise_of_loss(_history(1.0, 3.0, 2.0, 1.05)) == ""
    assert _rise_of_loss(_history(1.0, 2.0)) == ""
