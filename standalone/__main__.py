"""`python -m standalone up|down`: what `textmatch up` and `textmatch down` run."""

from __future__ import annotations

import sys

import typer

from standalone.commands import down, up
from textmatch.errors import TextMatchError

app = typer.Typer(add_completion=False)
app.command()(up)
app.command()(down)


def main() -> None:
    """Errors are one line on stderr."""
    try:
        app()
    except TextMatchError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
