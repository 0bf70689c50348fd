"""What a person sees of training: a bar with loss and time left, or lines where nobody looks."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SECONDS_BETWEEN_LINES = 30.0


class ShowProgress(TrainerCallback):
    """A bar on a terminal; elsewhere a line for each measurement and every half minute."""

    def __init__(self, metric: str, console: Console) -> None:
        self._metric = metric
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._loss = ""
        self._measured = ""
        self._printed_at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._task = self._progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, figures=""
        )
        if state.is_world_process_zero:
            self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        logs: dict[str, float] = found["logs"]
        if "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.4f}"
        is_measurement = f"eval_{self._metric}" in logs
        if is_measurement:
            self._measured = f"dev {self._metric} {logs[f'eval_{self._metric}']:.4f}"
        figures = " ".join(filter(None, (self._loss, self._measured)))
        self._progress.update(self._task, figures=figures)
        is_due = is_measurement or time.monotonic() - self._printed_at > _SECONDS_BETWEEN_LINES
        if is_due and state.is_world_process_zero and not self._console.is_terminal:
            self._console.print(f"step {state.global_step} of {state.max_steps}: {figures}")
            self._printed_at = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.stop()
