"""The training commands: `textmatch train RECIPE`, or `python -m training RECIPE` under accelerate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import typer
from joblib import cpu_count
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from textmatch.errors import TextMatchError
from training.calibrate import calibrate
from training.distill import DistillSettings, train_distill
from training.fit import RunResult
from training.groups import GroupSettings, convert_groups
from training.mlm import MlmSettings, train_mlm
from training.model_files import export_onnx
from training.regression import RegressionSettings, train_regression
from training.settings import RunSettings, add_command, short_path
from training.siamese import (
    CosentSettings,
    SbertSettings,
    SiameseSettings,
    train_cosent,
    train_sbert,
    train_siamese,
)
from training.simcse import MiningSettings, SimcseSettings, mine, train_simcse
from training.split import SplitSettings, split_files

Settings = TypeVar("Settings", bound=RunSettings)


def _add_recipe(
    app: typer.Typer,
    name: str,
    settings_class: type[Settings],
    train: Callable[[Settings, Console], RunResult],
) -> None:
    """Add the command `name`, which trains with the settings of its options."""

    def run(settings: Settings) -> None:
        # In a container, torch takes the cores of the machine. A lower OMP_NUM_THREADS is meant.
        usable = min(torch.get_num_threads(), cpu_count(only_physical_cores=True))
        torch.set_num_threads(settings.threads or usable)
        # Their bars break ours, and their warnings of randomly initialised heads are expected.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        _print_result(train(settings, Console(stderr=True)))

    run.__doc__ = train.__doc__
    add_command(app, name, settings_class, run)


def _print_result(result: RunResult) -> None:
    console = Console()
    if result.metrics:
        names = list(next(iter(result.metrics.values())))
        table = Table("measured on", *names)
        for path, metrics in result.metrics.items():
            table.add_row(short_path(path), *(f"{metrics[name]:.4f}" for name in names))
        console.print(table)
    for warning in result.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"saved to {result.output}", highlight=False, soft_wrap=True)
    if result.is_start_kept:
        raise typer.Exit(1)


app = typer.Typer(add_completion=False, no_args_is_help=True)
_add_recipe(app, "siamese", SiameseSettings, train_siamese)
_add_recipe(app, "cosent", CosentSettings, train_cosent)
_add_recipe(app, "sbert", SbertSettings, train_sbert)
_add_recipe(app, "simcse", SimcseSettings, train_simcse)
_add_recipe(app, "regression", RegressionSettings, train_regression)
_add_recipe(app, "distill", DistillSettings, train_distill)
_add_recipe(app, "mlm", MlmSettings, train_mlm)
add_command(app, "mine", MiningSettings, mine)
add_command(app, "groups", GroupSettings, convert_groups)
add_command(app, "split", SplitSettings, split_files)
app.command()(calibrate)
app.command("export")(export_onnx)


def main() -> None:
    """Run the command. An error of the caller is one line on stderr and exit code 1."""
    try:
        app()
    except TextMatchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
