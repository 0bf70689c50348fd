"""What a command fails with."""

from __future__ import annotations

from textmatch.errors import TextMatchError


class CommandFailed(TextMatchError):
    """A command cannot do what it was asked to; the message says why."""
