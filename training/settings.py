"""Settings of the training commands: each field of a settings dataclass is an option of its command.

`command_line` is the reverse, for the model card.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import numpy as np
import typer
from rich.console import Console
from typer import Option

from textmatch.errors import InvalidInput
from textmatch.io.columns import PAIR
from textmatch.io.data_files import FileFormat
from textmatch.models.engines import AUTO, resolve_device, resolve_dtype
from training.labels import ScoreRange

HeaderOption = Annotated[
    bool | None,
    Option("--header/--no-header", help="Whether the files start with a header row. Detected by default."),
]
ColumnsOption = Annotated[
    str, Option(help="Columns to read, by name or by number from 1, separated by commas: 2,3,label.")
]
ScoreRangeOption = Annotated[
    tuple[float, float], Option(help="Lowest and highest score in the files of pairs, such as 0 5.")
]
BaseOption = Annotated[
    str,
    Option(
        help="Base model: a local directory or a name on the Hugging Face hub. Default: all-MiniLM-L6-v2 for"
        " English texts, multilingual-e5-small for others."
    ),
]
FreezeOption = Annotated[
    bool | None,
    Option(
        help="Whether the word embeddings stay as they are. Default: on a CPU, if there are 100,000 or more;"
        " they are most of the weights of a multilingual model."
    ),
]
DeviceOption = Annotated[str, Option(help="auto, cpu or cuda. CUDA_VISIBLE_DEVICES selects GPUs.")]
LearningRateOption = Annotated[float, Option(min=0.0, help="Peak learning rate.")]
EpochsOption = Annotated[int, Option(min=1, help="Passes over the training data.")]
# Steps on a CPU by default: 32 pairs of short sentences each, about ten minutes on two cores.
_CPU_STEPS = 750
PassesOption = Annotated[
    int,
    Option(
        min=0,
        help="Passes over the training data. Default, 0: 3, of a cross-encoder 4; on a CPU at most"
        f" {_CPU_STEPS} steps.",
    ),
]
Bf16Option = Annotated[
    bool | None,
    Option(
        help="Compute in bfloat16. Default: if the processor or GPU has it, which takes about half the time."
    ),
]

MixOption = Annotated[
    str,
    Option(
        help="Shares of the batches that come from each part of the training data, such as 3,2,1. Each file"
        " is a part, in the order of the options in this help. Default: shares of their sizes."
    ),
]

Settings = TypeVar("Settings")
Run = TypeVar("Run", bound="RunSettings")


@dataclass(frozen=True)
class LearningRateSchedule:
    """Factor of the learning rate by step: linear between the points, constant after the last one."""

    steps: Sequence[int]
    factors: Sequence[float]

    def __call__(self, step: int) -> float:
        return float(np.interp(step, self.steps, self.factors))


def parse_schedule(text: str) -> LearningRateSchedule:
    """`1000:1,2000:0.1`: from 0 up to 1 at step 1000, down to 0.1 at step 2000, and 0.1 from there.

    Raises:
        InvalidInput: a point is not STEP:FACTOR, a factor is negative, or the steps do not increase.
    """
    points = [_parse_point(point) for point in text.split(",")]
    if points[0][0] > 0:
        points.insert(0, (0, 0.0))
    steps, factors = zip(*points, strict=True)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise InvalidInput.of_field("lr-schedule", f'the steps of "{text}" must increase')
    return LearningRateSchedule(steps, factors)


def parse_mix(text: str, part_count: int) -> tuple[float, ...]:
    """`3,2,1`: the shares of three parts of the training data; "": none are set.

    Raises:
        InvalidInput: there is not one number above 0 for each part.
    """
    if not text:
        return ()
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        raise InvalidInput.of_field("mix", f'"{text}" is not a list of numbers, such as 3,2,1') from None
    if len(shares) != part_count or not all(0 < share < float("inf") for share in shares):
        problem = f'"{text}" must have one number above 0 for each part; there are {part_count} parts'
        raise InvalidInput.of_field("mix", problem)
    return shares


def _parse_point(text: str) -> tuple[int, float]:
    step, _, factor = text.partition(":")
    try:
        point = int(step), float(factor)
    except ValueError:
        raise InvalidInput.of_field("lr-schedule", f'"{text}" is not STEP:FACTOR, such as 1000:0.5') from None
    if point[0] < 0 or not 0 <= point[1] < float("inf"):
        raise InvalidInput.of_field("lr-schedule", f'step and factor of "{text}" must be 0 or more')
    return point


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every recipe. Equal settings give equal weights on the same machine."""

    train: Annotated[list[Path], Option(help="Training file. Can be repeated.")]
    output: Annotated[Path, Option(help="Directory to write the model to.")]
    dev: Annotated[Path | None, Option(help="File to evaluate on during training.")] = None
    base: BaseOption = ""
    held_out: Annotated[list[Path], Option(help="File to evaluate on after training. Can be repeated.")] = (
        field(default_factory=list)
    )
    header: HeaderOption = None
    columns: ColumnsOption = ""
    score_range: ScoreRangeOption = (0.0, 1.0)
    data_note: Annotated[str, Option(help="Origin and licence of the data, for the model card.")] = ""
    epochs: EpochsOption = 1
    max_steps: Annotated[int, Option(min=0, help="Stop after this many steps; 0: no limit.")] = 0
    batch_size: Annotated[int, Option(min=1, help="Rows per batch on one device.")] = 32
    accumulate: Annotated[int, Option(min=1, help="Batches per step (gradient accumulation).")] = 1
    learning_rate: LearningRateOption = 2e-5
    lr_schedule: Annotated[
        str,
        Option(
            help="Factors of the learning rate as STEP:FACTOR points, linear in between: 1000:1,2000:0.1."
            " Default: warm-up over a tenth of the steps, then linear decay to 0."
        ),
    ] = ""
    weight_decay: Annotated[float, Option(min=0.0)] = 0.01
    max_length_tokens: Annotated[int, Option(min=8, help="Longer inputs are truncated.")] = 128
    evaluate_steps: Annotated[
        int, Option(min=0, help="Steps between evaluations and checkpoints; 0: once per epoch.")
    ] = 0
    patience: Annotated[
        int, Option(min=0, help="Stop after this many evaluations without improvement; 0: never.")
    ] = 0
    seed: Annotated[int, Option(help="Equal seeds give equal models on the same machine.")] = 1
    bf16: Bf16Option = None
    device: DeviceOption = AUTO
    threads: Annotated[
        int, Option(min=0, help="Threads on a CPU; 0: one for each core that the process may use.")
    ] = 0
    report_to: Annotated[
        Literal["none", "tensorboard", "wandb"],
        Option(help="Where to send losses and metrics; TensorBoard's files are in OUTPUT.runs."),
    ] = "none"
    resume: Annotated[bool, Option(help="Continue from the last checkpoint of this output.")] = False

    @property
    def training_files(self) -> list[Path]:
        """All files that the model learns from, for the model card."""
        return self.train

    @property
    def evaluation_files(self) -> list[Path]:
        """The dev file, if there is one, and the held-out files."""
        return [*([self.dev] if self.dev else []), *self.held_out]

    @property
    def file_format(self) -> FileFormat:
        """The layout of the training files."""
        return FileFormat.of_options(self.header, self.columns)

    @property
    def pair_format(self) -> FileFormat:
        """The layout of files of pairs. `--columns` of another number are for the training files only."""
        return self.file_format.of_width(len(PAIR) + 1)

    @property
    def range(self) -> ScoreRange:
        """The range of the scores in the files of pairs.

        Raises:
            InvalidInput: it is empty.
        """
        return ScoreRange.of_option(self.score_range)

    @property
    def schedule(self) -> LearningRateSchedule | None:
        """The learning rate schedule, if one was given."""
        return parse_schedule(self.lr_schedule) if self.lr_schedule else None

    @property
    def torch_device(self) -> str:
        """The device as torch names it."""
        return resolve_device(self.device)

    @property
    def computes_in_bfloat16(self) -> bool:
        """As asked for, or as the device can."""
        if self.bf16 is not None:
            return self.bf16
        return resolve_dtype(AUTO, self.torch_device) == "bfloat16"

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints, next to the output. It is removed when training is done."""
        return self.output.with_name(f"{self.output.name}.checkpoints")

    @property
    def tensorboard_directory(self) -> Path:
        """Where TensorBoard's files are written, if they are."""
        return self.output.with_name(f"{self.output.name}.runs")

    def check(self) -> None:
        """Validate before any data is read.

        Raises:
            InvalidInput: the output is in use, an option cannot be read or needs a library that is not
                installed, or there is nothing to resume.
        """
        ScoreRange.of_option(self.score_range)
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            problem = f"needs a library that is not installed: pip install {self.report_to}"
            raise InvalidInput.of_field("report-to", problem)
        if self.output.is_dir() and any(self.output.iterdir()):
            raise InvalidInput.of_field("output", f'directory "{self.output}" is not empty')
        if self.lr_schedule:
            parse_schedule(self.lr_schedule)
        if self.patience and self.dev is None:
            raise InvalidInput.of_field("patience", "needs a --dev file")
        has_checkpoint = any(self.checkpoints.rglob("checkpoint-*"))
        if self.resume and not has_checkpoint:
            raise InvalidInput.of_field("resume", f'there is no checkpoint in "{self.checkpoints}"')
        if not self.resume and has_checkpoint:
            problem = f'"{self.checkpoints}" holds checkpoints of an earlier run: use --resume, or remove it'
            raise InvalidInput.of_field("output", problem)


def with_length(settings: Run, row_count: int, passes: int, console: Console) -> Run:
    """The settings with the length that was asked for, or with the default one, which is printed.

    Args:
        settings: 0 epochs and 0 steps ask for the default.
        row_count: of the training data.
        passes: over it by default.
        console: for the line.
    """
    if settings.epochs or settings.max_steps:
        return replace(settings, epochs=settings.epochs or 1)
    pass_steps = math.ceil(math.ceil(row_count / settings.batch_size) / settings.accumulate)
    if settings.torch_device != "cpu" or passes * pass_steps <= _CPU_STEPS:
        return replace(settings, epochs=passes)
    console.print(
        f"{_CPU_STEPS} steps, {_CPU_STEPS / pass_steps:.2g} passes over the data; --epochs chooses more",
        highlight=False,
    )
    return replace(settings, epochs=1, max_steps=_CPU_STEPS)


def add_command(
    app: typer.Typer, name: str, settings_class: type[Settings], run: Callable[[Settings], None]
) -> None:
    """Add the command `name`. It builds settings from its options and calls `run` with them."""

    def command(**values: Any) -> None:
        run(settings_class(**values))

    hints = get_type_hints(settings_class, include_extras=True)
    parameters = [
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=_default(one), annotation=hints[one.name]
        )
        for one in fields(settings_class)  # type: ignore[arg-type]
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name, help=inspect.getdoc(run))(command)


def command_line(name: str, settings: Any) -> str:
    """The command that gives these settings. Paths are shortened, since folders differ between machines."""
    words = ["textmatch", "train", name]
    for one in fields(settings):
        value = getattr(settings, one.name)
        if value != _default(one) and one.name != "resume":
            words += _option_words(one.name.replace("_", "-"), value)
    return shlex.join(words)


def short_path(path: Path) -> str:
    """The name of a file or directory and of the folder it is in."""
    return f"{path.resolve().parent.name}/{path.name}"


def short_model_name(name: str) -> str:
    """The name of a model; for a local directory its short path."""
    return short_path(Path(name)) if name and Path(name).is_dir() else name


def _option_words(option: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [word for one in value for word in _option_words(option, one)]
    if isinstance(value, tuple):
        return [f"--{option}", *(f"{one:g}" for one in value)]
    return [f"--{option}", short_path(value) if isinstance(value, Path) else short_model_name(str(value))]


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return inspect.Parameter.empty if one.default is MISSING else one.default
