"""What every recipe can be told. Each field is an option of its command.

A learning rate that follows straight lines between points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.models.engines import AUTO, resolve_device
from training.data_files import FileForm


@dataclass(frozen=True)
class LearningRateSchedule:
    """By which factor the learning rate is multiplied at a step; behind the last point it stays."""

    steps: Sequence[int]
    factors: Sequence[float]

    def __call__(self, step: int) -> float:
        return float(np.interp(step, self.steps, self.factors))


def parse_schedule(text: str) -> LearningRateSchedule:
    """`1000:1,2000:0.1`: from 0 up to 1 at step 1000, down to 0.1 at step 2000, and 0.1 from there.

    Raises:
        InvalidInput: a point is no STEP:FACTOR, a factor is negative, or the steps do not rise.
    """
    points = [_parse_point(point) for point in text.split(",")]
    if points[0][0] > 0:
        points.insert(0, (0, 0.0))
    steps, factors = zip(*points, strict=True)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise InvalidInput.of_field("lr-schedule", f'the steps of "{text}" do not rise')
    return LearningRateSchedule(steps, factors)


def _parse_point(text: str) -> tuple[int, float]:
    step, _, factor = text.partition(":")
    try:
        point = int(step), float(factor)
    except ValueError:
        raise InvalidInput.of_field("lr-schedule", f'"{text}" is not STEP:FACTOR, such as 1000:0.5') from None
    if point[0] < 0 or not 0 <= point[1] < float("inf"):
        raise InvalidInput.of_field("lr-schedule", f'"{text}" must have a step and a factor from 0 on')
    return point


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that decides the result; equal settings give equal weights on the same machine."""

    train: Annotated[list[Path], Option(help="File to train on; may be given again.")]
    output: Annotated[Path, Option(help="Directory to write the model to.")]
    dev: Annotated[Path | None, Option(help="File to measure on while training.")] = None
    held_out: Annotated[list[Path], Option(help="File to measure on at the end; may be given again.")] = (
        field(default_factory=list)
    )
    header: Annotated[
        bool | None,
        Option("--header/--no-header", help="Whether files begin with a header; else it is detected."),
    ] = None
    columns: Annotated[
        str, Option(help="Columns to read, by name or number from 1, with commas between: 2,3,label.")
    ] = ""
    data_note: Annotated[str, Option(help="Origin and licence of the data, for the model card.")] = ""
    epochs: Annotated[int, Option(min=1, help="Times that all data is seen.")] = 1
    max_steps: Annotated[int, Option(min=0, help="Stop after so many steps; 0: after the epochs.")] = 0
    batch_size: Annotated[int, Option(min=1, help="Rows in a step on one device.")] = 32
    accumulate: Annotated[int, Option(min=1, help="Batches whose gradients make one step.")] = 1
    learning_rate: Annotated[float, Option(min=0.0, help="Highest learning rate.")] = 2e-5
    lr_schedule: Annotated[
        str,
        Option(
            help="Straight lines between STEP:FACTOR points, such as 1000:1,2000:0.1;"
            " else a tenth of the steps up, then down to 0."
        ),
    ] = ""
    weight_decay: Annotated[float, Option(min=0.0)] = 0.01
    max_length_tokens: Annotated[int, Option(min=8, help="What is longer is cut.")] = 128
    evaluate_steps: Annotated[
        int,
        Option(
            min=0, help="Measure on the dev file, and keep a checkpoint, every so many steps; 0: every epoch."
        ),
    ] = 0
    patience: Annotated[
        int, Option(min=0, help="Stop when so many measurements in a row are no better; 0: never.")
    ] = 0
    seed: Annotated[int, Option(help="The same seed gives the same model on the same machine.")] = 1
    bf16: Annotated[bool, Option(help="Compute in bfloat16.")] = False
    device: Annotated[str, Option(help="auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs.")] = AUTO
    resume: Annotated[bool, Option(help="Go on from the last checkpoint of this output.")] = False

    @property
    def files_learnt_from(self) -> list[Path]:
        """All of them, for the model card."""
        return self.train

    @property
    def form(self) -> FileForm:
        """What is said of the form of the data files."""
        names = tuple(name.strip() for name in self.columns.split(",")) if self.columns else ()
        return FileForm(has_header=self.header, columns=names)

    @property
    def schedule(self) -> LearningRateSchedule | None:
        """The points of the learning rate, if they were given."""
        return parse_schedule(self.lr_schedule) if self.lr_schedule else None

    @property
    def torch_device(self) -> str:
        """The device as torch names it."""
        return resolve_device(self.device)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints stand until training is done: beside the output, since they are no part of it."""
        return self.output.with_name(f"{self.output.name}.checkpoints")

    def check(self) -> None:
        """Refuse before anything is read what cannot end well.

        Raises:
            InvalidInput: the output is in use, the schedule cannot be read, or there is nothing to resume.
        """
        if self.output.is_dir() and any(self.output.iterdir()):
            raise InvalidInput.of_field("output", f'directory "{self.output}" is not empty')
        if self.lr_schedule:
            parse_schedule(self.lr_schedule)
        if self.patience and self.dev is None:
            raise InvalidInput.of_field("patience", "needs a --dev file to measure on")
        has_checkpoint = any(self.checkpoints.rglob("checkpoint-*"))
        if self.resume and not has_checkpoint:
            raise InvalidInput.of_field("resume", f'there is no checkpoint in "{self.checkpoints}"')
        if not self.resume and has_checkpoint:
            raise InvalidInput.of_field(
                "output",
                f'"{self.checkpoints}" holds checkpoints of an earlier run: use --resume, or remove it',
            )
