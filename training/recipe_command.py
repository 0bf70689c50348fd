"""A recipe as a command: data and progress are told on stderr, the outcome on stdout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from training.options import add_command, short_name
from training.outcome import Outcome

Settings = TypeVar("Settings")


def add_recipe(
    app: typer.Typer, name: str, settings_class: type[Settings], train: Callable[[Settings, Console], Outcome]
) -> None:
    """Add the command `name`, which trains with the settings that its options give."""

    def run(settings: Settings) -> None:
        # Their bars would break into ours; that a new head is new is no news.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        _tell(train(settings, Console(stderr=True)))

    run.__doc__ = train.__doc__
    add_command(app, name, settings_class, run)


def _tell(outcome: Outcome) -> None:
    console = Console()
    if outcome.measured:
        names = list(next(iter(outcome.measured.values())))
        table = Table("measured on", *names)
        for path, measured in outcome.measured.items():
            table.add_row(short_name(path), *(f"{measured[name]:.4f}" for name in names))
        console.print(table)
    console.print(f"saved to {outcome.output}", highlight=False, soft_wrap=True)
