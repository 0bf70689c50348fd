"""One training run: checkpoints, early stopping, resuming, evaluation of the result and its model card.

Training keeps the checkpoint with the best dev metric; the model before the first step competes too. On
Ctrl-C it saves a checkpoint at once, from which the run continues as if it had not been interrupted.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
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
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

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
# The means of the first and of the last of so many parts of the losses are compared.
_LOSS_PARTS = 4
_MAX_LOSS_RISE = 1.1


@dataclass(frozen=True)
class SelectionMetric:
    """The metric on the dev file that selects the best checkpoint."""

    name: str
    is_greater_better: bool = True


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    `metrics` holds the recipe's metrics by dev and held-out file. `warnings` say where others are better.
    `is_start_kept`: no checkpoint was better on the dev file than the model before training, which was saved.
    """

    output: Path
    command: str
    metrics: Mapping[Path, Mapping[str, float]]
    warnings: Sequence[str] = ()
    is_start_kept: bool = False


@dataclass(frozen=True)
class FitOutcome:
    """How a training went. `warnings` say what is wrong with it."""

    warnings: Sequence[str] = ()
    is_start_kept: bool = False


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
        "bf16": settings.computes_in_bfloat16,
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
        "report_to": "wandb" if settings.report_to == "wandb" else "none",
        "run_name": settings.output.name,
        # Among them the count of evaluations without improvement.
        "restore_callback_states_from_checkpoint": True,
    }


def fit(
    trainer: ScheduledTrainer,
    settings: RunSettings,
    metric: SelectionMetric,
    console: Console,
    sample_scores: Callable[[], NDArray[np.float32]] | None = None,
) -> FitOutcome:
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
    progress = ShowProgress(metric.name, console)
    trainer.add_callback(progress)
    if settings.report_to == "tensorboard":
        trainer.add_callback(_tensorboard(settings.tensorboard_directory))
    stop = StopOnBadLoss()
    trainer.add_callback(stop)
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    checkpoint = None
    if settings.resume:
        checkpoint = get_last_checkpoint(str(settings.checkpoints))  # type: ignore[no-untyped-call]
    interrupt = InterruptCallback(can_raise=trainer.args.world_size == 1)
    if settings.dev:
        trainer.add_callback(MissingEvaluation(trainer, metric.name))
    trainer.add_callback(interrupt)
    trainer.interruptible = interrupt.window
    with interrupt:
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except TrainingInterrupted:
            interrupt.restore_random_state()
            trainer.save_interrupted()
            progress.stop()
            console.print(
                f'stopped at step {trainer.state.global_step}; the checkpoint is in "{settings.checkpoints}".'
                " To continue, run the same command with --resume"
            )
            raise
        finally:
            progress.stop()
    problem = stop.problem or (score_spread(sample_scores()).problem if sample_scores else "")
    if problem:
        raise TrainingFailed(
            f"the model collapsed: {problem}. It was not saved; its checkpoints are in "
            f'"{settings.checkpoints}". Try a lower learning rate, a longer warm-up or another seed'
        )
    history = trainer.state.log_history
    if trainer.is_world_process_zero():
        save_history(settings.output, history)
    is_start_kept = bool(settings.dev) and trainer.state.best_global_step == 0
    warnings = [found] if (found := _rise_of_loss(history)) else []
    if is_start_kept:
        warnings.append(
            f"training did not make the model better: {metric.name} on {settings.dev} was"
            f" {trainer.state.best_metric:.4f} before the first step and never better. The model before"
            " training was saved. Lower the learning rate, or add data"
        )
    return FitOutcome(warnings, is_start_kept)


def _rise_of_loss(history: Sequence[Mapping[str, float]]) -> str:
    """A warning if the loss is higher at the end than at the beginning; "" if it is not."""
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    part = len(losses) // _LOSS_PARTS
    if not part:
        return ""
    first, last = float(np.mean(losses[:part])), float(np.mean(losses[-part:]))
    if last <= first * _MAX_LOSS_RISE:
        return ""
    return f"the loss rose from {first:.4g} to {last:.4g}: lower the learning rate"


def _tensorboard(directory: Path) -> TrainerCallback:
    # The package is installed only by those who use it.
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(directory))
    return TensorBoardCallback(writer)  # type: ignore[no-untyped-call]


def has_checkpoint(directory: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return any(directory.glob("checkpoint-*"))


def finish_run(
    recipe: str,
    settings: RunSettings,
    report: DataReport,
    measure: Callable[[Path], Mapping[str, float]],
    base_name: str,
    outcome: FitOutcome = FitOutcome(),
) -> RunResult:
    """Evaluate the model, write the model card, and remove the checkpoints.

    Args:
        recipe: its name.
        settings: of the run.
        report: of the training data.
        measure: from an evaluation file to metrics of the model that was saved.
        base_name: of the base model; empty if there was none.
        outcome: of the training.
    """
    metrics = {path: measure(path) for path in settings.evaluation_files}
    warnings = list(outcome.warnings)
    if PartialState().is_main_process:
        warnings += write_card_of_run(recipe, settings, report, metrics, base_name)
    shutil.rmtree(settings.checkpoints, ignore_errors=True)
    command = command_line(recipe, settings)
    return RunResult(settings.output, command, metrics, warnings, outcome.is_start_kept)


class InterruptCallback(TrainerCallback):
    """Ends training on SIGINT or SIGTERM while entered. A second signal acts as usual.

    It raises TrainingInterrupted at once where the weights are those of the last step: before the optimizer
    changes them, and in evaluations. A step that was begun is discarded. With several processes
    (`can_raise` False), or while the optimizer works, it raises at the end of the step.
    """

    def __init__(self, *, can_raise: bool = True) -> None:
        self.is_interrupted = False
        self._can_raise = can_raise
        self._is_open = False
        self._random_state: tuple[Any, ...] | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def window(self) -> Iterator[None]:
        """A block that may be interrupted at any point, such as an evaluation."""
        self._open()
        yield
        self._close()

    def restore_random_state(self) -> None:
        """Set all generators back to the beginning of what was discarded, if something was."""
        if self._random_state is None:
            return
        python, numpy, cpu, cuda = self._random_state
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(cuda)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        signal.signal(number, self._previous[signal.Signals(number)])
        if self._is_open:
            self._raise()

    def _open(self) -> None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._random_state = random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda
        self._is_open = self._can_raise
        if self._is_open and self.is_interrupted:
            self._raise()

    def _close(self) -> None:
        self._is_open = False
        self._random_state = None

    def _raise(self) -> None:
        self._is_open = False
        raise TrainingInterrupted

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._open()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self._is_open = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._close()
        if self.is_interrupted:
            self._raise()


class MissingEvaluation(TrainerCallback):
    """Evaluates where the library does not: before the first step, and where an interrupted run stopped.

    The model before the first step is saved as a checkpoint and competes for the best one. A run that was
    interrupted between a step and its evaluation makes up for the evaluation first.
    """

    def __init__(self, trainer: ScheduledTrainer, metric: str) -> None:
        self._trainer = trainer
        self._metric = metric
        self._is_due = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step = state.global_step
        is_measured = any(f"eval_{self._metric}" in one and one["step"] == step for one in state.log_history)
        self._is_due = not is_measured and (step == 0 or self._is_evaluated(args, state))
        # With no step left, no further one begins.
        if step == 0 or step >= state.max_steps:
            self._make_up()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The state of the generators was loaded after `on_train_begin`.
        self._make_up()

    def _make_up(self) -> None:
        if self._is_due:
            self._trainer.evaluate_and_save()
            self._is_due = False

    def _is_evaluated(self, args: Any, state: TrainerState) -> bool:
        """Whether an uninterrupted run evaluates at this step."""
        if args.eval_strategy == IntervalStrategy.STEPS:
            return bool(state.global_step % state.eval_steps == 0)
        return bool(float(state.epoch or 0.0).is_integer() or state.global_step >= state.max_steps)


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

    def stop(self) -> None:
        """Remove the bar."""
        if self._console.is_terminal:
            self._progress.stop()
