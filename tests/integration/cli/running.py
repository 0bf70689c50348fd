"""The command in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from textmatch.cli.__main__ import main


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Any], str]:
    """Exit code, the JSON documents on stdout and stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err
