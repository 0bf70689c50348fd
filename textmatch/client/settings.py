"""Settings of the Python client."""

from __future__ import annotations

from dataclasses import dataclass

from textmatch.runtime.settings import setting


@dataclass(frozen=True)
class ClientSettings:
    """What the client reads from the environment unless its arguments say otherwise."""

    api_key: str = setting("TEXTMATCH_API_KEY", "", "API key for matcher and encoder.", is_secret=True)
