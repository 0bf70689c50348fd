"""What a run came to: measured on the dev and held-out files, told, and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from training.data_report import DataReport
from training.fit import remove_checkpoints
from training.model_card import write_card_of_run
from training.options import command_line
from training.settings import RunSettings

Measurements = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """A finished run. `measured` has what the recipe measures by, for each dev and held-out file."""

    recipe: str
    output: Path
    base_name: str
    command: str
    report: DataReport
    measured: Mapping[Path, Measurements]


def finish(
    recipe: str,
    settings: RunSettings,
    report: DataReport,
    measure: Callable[[Path], Measurements],
    base_name: str,
) -> Outcome:
    """Measure the saved model's twin in memory, write the model card, and remove the checkpoints."""
    files = [*([settings.dev] if settings.dev else []), *settings.held_out]
    outcome = Outcome(
        recipe=recipe,
        output=settings.output,
        base_name=base_name,
        command=command_line(recipe, settings),
        report=report,
        measured={path: measure(path) for path in files},
    )
    if PartialState().is_main_process:
        write_card_of_run(recipe, settings, report, outcome.measured, base_name)
    remove_checkpoints(settings)
    return outcome
