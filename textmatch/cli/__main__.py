"""The `textmatch` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from textmatch.cli.commands import CommandGroup

_INTERRUPTED = 130

app = typer.Typer(cls=CommandGroup)


@app.callback(invoke_without_command=True)
def textmatch(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Find the stored texts that mean the same as a query, with a score from 0 to 1.

    1. Start all servers on this machine: textmatch up

    2. Store documents: textmatch ingest FILE

    3. Search: textmatch match "QUERY"
    """
    if show_version:
        typer.echo(f"textmatch {version('textmatch')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # Errors are reported below, in one line; without this, gRPC would log them too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="textmatch", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # Python would report at exit that the rest of the buffer cannot be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from textmatch.cli.errors import message_of

        message = message_of(error)
        if message is None:
            raise
        return _fail(message, 1)
    return result if isinstance(result, int) else 0


def _fail(message: str, exit_code: int) -> int:
    sys.stderr.write(f"textmatch: {message}\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
