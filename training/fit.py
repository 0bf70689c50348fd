"""One training run: checkpoints, the best one kept, early stopping, resuming, an orderly end on Ctrl-C.

Ctrl-C ends training behind the next step, with a checkpoint to go on from.

What a person sees of training: a bar with loss and time left, or lines where nobody looks.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from training.settings import RunSettings

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


# Of a model directory this is no part: what begins with a dot does not count for its id.
HISTORY = Path(".training") / "history.json"
_KEPT_CHECKPOINTS = 2
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Goal:
    """What the dev file is measured by: the evaluator's name for it, and whether more of it is better."""

    metric: str
    is_greater_better: bool = True


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside; its checkpoint is saved."""


def training_arguments(settings: RunSettings, goal: Goal) -> dict[str, Any]:
    """What the settings say, as the arguments that all trainers take."""
    has_dev = settings.dev is not None
    strategy = "steps" if settings.evaluate_steps else "epoch"
    device = settings.torch_device
    return {
        "output_dir": str(settings.checkpoints),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "warmup_steps": _WARM_UP_SHARE,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "bf16": settings.bf16,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
        "eval_strategy": strategy if has_dev else "no",
        "eval_steps": settings.evaluate_steps or None,
        "save_strategy": strategy,
        "save_steps": settings.evaluate_steps or 500,
        "save_total_limit": _KEPT_CHECKPOINTS,
        "load_best_model_at_end": has_dev,
        "metric_for_best_model": f"eval_{goal.metric}" if has_dev else None,
        "greater_is_better": goal.is_greater_better if has_dev else None,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def fit(trainer: Trainer, settings: RunSettings, goal: Goal, console: Console) -> None:
    """Train, leave the best model in the trainer, and write the history of loss and measurements.

    Raises:
        Interrupted: Ctrl-C came; a checkpoint was saved, and how to go on was said.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ShowProgress(goal.metric, console))
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    checkpoint = _last_checkpoint(settings) if settings.resume else None
    with SaveOnInterrupt() as interrupt:
        trainer.add_callback(interrupt)
        trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.is_interrupted:
        console.print(
            f'stopped at step {trainer.state.global_step}; the checkpoint is in "{settings.checkpoints}".'
            " Go on with the same command and --resume"
        )
        raise Interrupted
    if trainer.is_world_process_zero():
        _write_history(settings.output, trainer.state.log_history)


def has_checkpoint(directory: Path) -> bool:
    """Whether a run has left something to go on from."""
    return any(directory.glob("checkpoint-*"))


def remove_checkpoints(settings: RunSettings) -> None:
    """Once the model is saved nobody needs them."""
    shutil.rmtree(settings.checkpoints, ignore_errors=True)


def _last_checkpoint(settings: RunSettings) -> str | None:
    found: str | None = get_last_checkpoint(str(settings.checkpoints))  # type: ignore[no-untyped-call]
    return found


def _write_history(output: Path, history: list[dict[str, float]]) -> None:
    path = output / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
