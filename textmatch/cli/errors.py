"""Failed commands, and errors as one line for people."""

from __future__ import annotations

from textmatch.client import ServerUnreachable
from textmatch.errors import TextMatchError


class CommandFailed(TextMatchError):
    """A command cannot do what it was asked to; the message says why."""


def message_of(error: Exception) -> str | None:
    """The message of an error on one line; None if the error is a bug, which needs its traceback."""
    if isinstance(error, ServerUnreachable):
        return f"{error}; is the stack running? Start it with: textmatch up"
    if isinstance(error, TextMatchError):
        return " ".join(str(error).split())
    return None
