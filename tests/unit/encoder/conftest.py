from __future__ import annotations

from collections.abc import Callable

import pytest

from services.encoder.batching import BatchPolicy, CallContext, CallLoad, EngineModel, Job
from services.encoder.scheduler import Scheduler
from tests.support.length_model import LengthModel, texts_of


@pytest.fixture
def length_model() -> LengthModel:
    return LengthModel()


@pytest.fixture
def make_job(length_model: LengthModel) -> Callable[..., Job]:
    """Jobs of so many texts with so many tokens. Needs a running event loop."""

    def make(
        *token_counts: int,
        is_bulk: bool = False,
        model: EngineModel | None = None,
        deadline: float | None = None,
        caller: str = "anyone",
        load: CallLoad | None = None,
        estimated_tokens: int = 0,
    ) -> Job:
        return Job(
            model or length_model.engine_model,
            texts_of(*token_counts),
            CallContext(caller, is_bulk, deadline),
            "texts[{}]".format,
            load,
            estimated_tokens,
        )

    return make


@pytest.fixture
def scheduler() -> Scheduler:
    """With batches of 100 tokens, of which 1,000 may wait."""
    return Scheduler(BatchPolicy(100, 0.1, 10), limit_tokens=1_000)


@pytest.fixture
def note_speed(scheduler: Scheduler, length_model: LengthModel) -> Callable[..., None]:
    """Record a batch of the model that `make_job` uses, in both lanes."""

    def note(tokens: int, seconds: float, model: EngineModel | None = None) -> None:
        for is_bulk in (False, True):
            scheduler.note_speed(model or length_model.engine_model, tokens, seconds, is_bulk=is_bulk)

    return note
