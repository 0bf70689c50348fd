"""One training run: checkpoints, early stopping, resuming, evaluation of the result and its model card.

Training keeps the checkpoint with the best dev metric. On Ctrl-C it stops after the current step, with a
checkpoint to resume from.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import get_last_checkpoint

from textmatch.errors import TextMatchError
from textmatch.models.collapse import score_spread
from training.data_report import DataReport
from training.model_card import write_card_of_run
from training.model_files import save_history
from training.settings import RunSettings, command_line
from training.trainers import ScheduledTrainer

_KEPT_CHECKPOINTS = 2
_WARM_UP_SHARE = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class SelectionMetric:
    """The metric on the dev file that selects the best checkpoint."""

    name: str
    is_greater_better: bool = True


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    `metrics` holds the recipe's metrics by dev and held-out file. `warnings` say where others are better.
    """

    output: Path
    command: str
    metrics: Mapping[Path, Mapping[str, float]]
    warnings: Sequence[str] = ()


class TrainingInterrupted(KeyboardInterrupt):
    """Training was interrupted; its checkpoint is saved."""


class TrainingFailed(TextMatchError):
    """The trained model is useless, and was not saved. The message says why and where its checkpoints are."""


def training_arguments(settings: RunSettings, metric: SelectionMetric) -> dict[str, Any]:
    """The settings as the arguments that all trainers take."""
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
        "metric_for_best_model": f"eval_{metric.name}" if has_dev else None,
        "greater_is_better": metric.is_greater_better if has_dev else None,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def fit(
    trainer: ScheduledTrainer,
    settings: RunSettings,
    metric: SelectionMetric,
    console: Console,
    sample_scores: Callable[[], NDArray[np.float32]] | None = None,
) -> None:
    """Train, load the best checkpoint into the trainer's model, and write the training history.

    Args:
        trainer: holds the model.
        settings: of the run.
        metric: selects the checkpoint.
        console: for progress.
        sample_scores: scores of different pairs by the trained model, which are checked for collapse.

    Raises:
        TrainingInterrupted: on Ctrl-C, after a checkpoint was saved and the command to resume was printed.
        TrainingFailed: the loss is not finite, or the model gives nearly the same score to all pairs.
    """
    trainer.schedule = settings.schedule
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ShowProgress(metric.name, console))
    stop = StopOnBadLoss()
    trainer.add_callback(stop)
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    checkpoint = None
    if settings.resume:
        checkpoint = get_last_checkpoint(str(settings.checkpoints))  # type: ignore[no-untyped-call]
    with SaveOnInterrupt() as interrupt:
        trainer.add_callback(interrupt)
        trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.is_interrupted:
        console.print(
            f'stopped at step {trainer.state.global_step}; the checkpoint is in "{settings.checkpoints}".'
            " To continue, run the same command with --resume"
        )
        raise TrainingInterrupted
    problem = stop.problem or (score_spread(sample_scores()).problem if sample_scores else "")
    if problem:
        raise TrainingFailed(
            f"the model collapsed: {problem}. It was not saved; its checkpoints are in "
            f'"{settings.checkpoints}". Try a lower learning rate, a longer warm-up or another seed'
        )
    if trainer.is_world_process_zero():
        save_history(settings.output, trainer.state.log_history)


def has_checkpoint(directory: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return any(directory.glob("checkpoint-*"))


def finish_run(
    recipe: str,
    settings: RunSettings,
    report: DataReport,
    measure: Callable[[Path], Mapping[str, float]],
    base_name: str,
) -> RunResult:
    """Evaluate the model, write the model card, and remove the checkpoints.

    Args:
        recipe: its name.
        settings: of the run.
        report: of the training data.
        measure: from an evaluation file to metrics of the model that was saved.
        base_name: of the base model; empty if there was none.
    """
    metrics = {path: measure(path) for path in settings.evaluation_files}
    warnings: Sequence[str] = ()
    if PartialState().is_main_process:
        warnings = write_card_of_run(recipe, settings, report, metrics, base_name)
    shutil.rmtree(settings.checkpoints, ignore_errors=True)
    return RunResult(settings.output, command_line(recipe, settings), metrics, warnings)


class SaveOnInterrupt(TrainerCallback):
    """Saves a checkpoint and stops on SIGINT or SIGTERM while entered. A second signal acts immediately."""

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

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.is_interrupted:
            control.should_save = True
            control.should_training_stop = True


class StopOnBadLoss(TrainerCallback):
    """Stops when the loss is not finite; `problem` then names it, and is empty otherwise."""

    def __init__(self) -> None:
        self.problem = ""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        for name in ("loss", "train_loss"):
            loss = float(found["logs"].get(name, 0.0))
            if not math.isfinite(loss) and not self.problem:
                self.problem = f"the loss is {loss} at step {state.global_step}"
                control.should_training_stop = True


class ShowProgress(TrainerCallback):
    """A progress bar on a terminal; otherwise one line for each evaluation and each half minute."""

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
        self._dev = ""
        self._printed_at = time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._task = self._progress.add_task(
            "training", total=state.max_steps, completed=state.global_step, figures=""
        )
        if state.is_world_process_zero:
            self._progress.start()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, **found: Any) -> None:
        logs: dict[str, float] = found["logs"]
        if "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.4f}"
        is_evaluation = f"eval_{self._metric}" in logs
        if is_evaluation:
            self._dev = f"dev {self._metric} {logs[f'eval_{self._metric}']:.4f}"
        figures = " ".join(filter(None, (self._loss, self._dev)))
        self._progress.update(self._task, figures=figures)
        is_due = is_evaluation or time.monotonic() - self._printed_at > _SECONDS_BETWEEN_LINES
        if is_due and state.is_world_process_zero and not self._console.is_terminal:
            self._console.print(f"step {state.global_step} of {state.max_steps}: {figures}")
            self._printed_at = time.monotonic()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._progress.stop()
