"""Train a model: `textmatch train RECIPE`, or `python -m training RECIPE` under accelerate."""

from __future__ import annotations

import sys

import typer

from textmatch.errors import TextMatchError
from training.calibrate import calibrate
from training.hard_negatives import MiningSettings, mine
from training.mlm import MlmSettings, train_mlm
from training.options import add_command
from training.recipe_command import add_recipe
from training.regression import RegressionSettings, train_regression
from training.sbert import SbertSettings, train_sbert
from training.siamese import SiameseSettings, train_siamese
from training.simcse import SimcseSettings, train_simcse
from training.split import SplitSettings, split_files

app = typer.Typer(add_completion=False, no_args_is_help=True)
add_recipe(app, "siamese", SiameseSettings, train_siamese)
add_recipe(app, "sbert", SbertSettings, train_sbert)
add_recipe(app, "simcse", SimcseSettings, train_simcse)
add_recipe(app, "regression", RegressionSettings, train_regression)
add_recipe(app, "mlm", MlmSettings, train_mlm)
add_command(app, "mine", MiningSettings, mine)
add_command(app, "split", SplitSettings, split_files)
app.command()(calibrate)


def main() -> None:
    """Runs the command; failures of the caller are one line on stderr and exit code 1."""
    try:
        app()
    except TextMatchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
