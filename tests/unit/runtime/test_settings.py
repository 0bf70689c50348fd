from __future__ import annotations

from dataclasses import dataclass

import pytest

from textmatch.errors import InvalidInput
from textmatch.runtime.settings import describe, load, setting


@dataclass(frozen=True)
class ExampleSettings:
    host: str = setting("EXAMPLE_HOST", "127.0.0.1", "Where.")
    port: int = setting("EXAMPLE_PORT", 1, "Which.", minimum=0, maximum=65_535)
    share: float = setting("EXAMPLE_SHARE", 0.5, "How much.")
    is_on: bool = setting("EXAMPLE_ON", default=False, description="Whether.")
    level: str = setting("EXAMPLE_LEVEL", "low", "How.", choices=("low", "high"))
    name: str = setting("EXAMPLE_NAME", "x", "Name.", pattern="[a-z]{1,3}")
    key: str = setting("EXAMPLE_KEY", "", "Secret.", is_secret=True)


def test_defaults_hold_where_nothing_is_set():
    assert load(ExampleSettings, {"EXAMPLE_HOST": ""}) == ExampleSettings()


def test_values_are_read_by_type():
    environment = {
        "EXAMPLE_PORT": "50",
        "EXAMPLE_SHARE": "0.25",
        "EXAMPLE_ON": "yes",
        "EXAMPLE_LEVEL": "high",
    }
    assert load(ExampleSettings, environment) == ExampleSettings(
        port=50, share=0.25, is_on=True, level="high"
    )


def test_every_bad_variable_is_named_with_its_limit():
    environment = {
        "EXAMPLE_PORT": "70000",
        "EXAMPLE_SHARE": "half",
        "EXAMPLE_ON": "perhaps",
        "EXAMPLE_LEVEL": "middle",
    }
    with pytest.raises(InvalidInput) as raised:
        load(ExampleSettings, environment)
    assert [str(violation) for violation in raised.value.violations] == [
        "EXAMPLE_PORT: is '70000'; it must be at most 65535",
        "EXAMPLE_SHARE: is 'half'; it must be a number",
        "EXAMPLE_ON: is 'perhaps'; it must be true or false",
        "EXAMPLE_LEVEL: is 'middle'; it must be one of low, high",
    ]


def test_secrets_are_masked():
    settings = load(ExampleSettings, {"EXAMPLE_KEY": "hunter2"})
    assert settings.key == "hunter2"
    assert describe(settings)["key"] == "****"
    assert describe(ExampleSettings())["key"] == ""


@pytest.mark.parametrize("name", ["A", "abcd", "a\n"])
def test_a_string_must_match_its_pattern(name: str):
    with pytest.raises(InvalidInput, match=r"EXAMPLE_NAME: is .*; it must match \[a-z\]\{1,3\}"):
        load(ExampleSettings, {"EXAMPLE_NAME": name})
