"""Ctrl-C ends training behind the next step, with a checkpoint to go on from."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveOnInterrupt(TrainerCallback):
    """Saves and stops when SIGINT or SIGTERM comes while it is entered; the second takes effect at once."""

    def __init__(self) -> None:
        self.is_interrupted = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        signal.signal(number, self._previous[signal.Signals(number)])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.is_interrupted:
            control.should_save = True
            control.should_training_stop = True
