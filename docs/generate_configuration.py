"""Writes docs/configuration.md from the settings dataclasses: `make docs`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from services.encoder.settings import EncoderSettings
from services.gateway.settings import GatewaySettings
from services.matcher.settings import MatcherSettings
from textmatch.cli.settings import CliSettings
from textmatch.client.settings import ClientSettings
from workers.settings import WorkerSettings

_SECTIONS: dict[str, Any] = {
    "Encoder": EncoderSettings,
    "Matcher": MatcherSettings,
    "Worker": WorkerSettings,
    "Gateway": GatewaySettings,
    "Command line": CliSettings,
    "Python client": ClientSettings,
}
_HEAD = """# Configuration

Made by `make docs` from the settings in the code; a test holds it to them. Every process reads its settings
once, from environment variables; a bad value ends the start with one line that names every bad variable.
Secrets are masked in logs. `textmatch up` passes its own environment on to all processes and sets addresses
and ports itself.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(title, settings) for title, settings in _SECTIONS.items())])


def _section(title: str, settings: Any) -> str:
    rows = [_row(field) for field in dataclasses.fields(settings)]
    return "\n".join([f"## {title}", "", "| variable | default | meaning |", "|---|---|---|", *rows, ""])


def _row(field: dataclasses.Field[Any]) -> str:
    metadata = field.metadata
    notes = [metadata["description"]]
    if metadata["choices"]:
        notes.append(f"One of {', '.join(metadata['choices'])}.")
    if metadata["minimum"]:
        notes.append(f"At least {metadata['minimum']:g}.")
    if metadata["maximum"] is not None:
        notes.append(f"At most {metadata['maximum']:g}.")
    if metadata["is_secret"]:
        notes.append("Secret.")
    default = "" if field.default == "" else f"`{field.default}`"
    return f"| `{metadata['variable']}` | {default} | {' '.join(notes)} |"


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(render())
