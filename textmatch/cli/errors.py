"""Failures as one line for people. Apart from the failures themselves, since it has to know the client."""

from __future__ import annotations

from textmatch.client import ServerUnreachable
from textmatch.errors import TextMatchError


def message_of(error: Exception) -> str | None:
    """What to tell people, or None if the error is a bug and its trace is needed."""
    if isinstance(error, ServerUnreachable):
        return f"{error}; is the stack running? Start it with: textmatch up"
    if isinstance(error, TextMatchError):
        return " ".join(str(error).split())
    return None
