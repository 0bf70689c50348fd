"""Settings: frozen dataclasses whose fields name their environment variable and explain themselves.

    @dataclass(frozen=True)
    class EncoderSettings:
        port: int = setting("TEXTMATCH_ENCODER_PORT", 50051, "Port of the gRPC server.")

    settings = load(EncoderSettings, os.environ)

Only `settings.py` files declare settings, and only they pass the environment in. `docs/configuration.md` is
made from these fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from textmatch.errors import InvalidInput, Violation
from textmatch.v1 import error_reason_pb2

Settings = TypeVar("Settings")

_MASK = "****"


def setting(
    variable: str,
    default: Any,
    description: str,
    *,
    is_secret: bool = False,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a field that is read from an environment variable: str, int, float or bool."""
    metadata = {
        "variable": variable,
        "description": description,
        "is_secret": is_secret,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
    }
    return dataclasses.field(default=default, metadata=metadata)


def load(settings_class: type[Settings], environment: Mapping[str, str]) -> Settings:
    """Read settings from environment variables; an empty variable counts as not set.

    Raises:
        InvalidInput: naming every variable with a bad value.
    """
    types = get_type_hints(settings_class)
    values: dict[str, Any] = {}
    violations: list[Violation] = []
    for field in dataclasses.fields(settings_class):  # type: ignore[arg-type]
        variable = field.metadata["variable"]
        text = environment.get(variable, "")
        if text == "":
            continue
        try:
            values[field.name] = _parse(text, types[field.name], field.metadata)
        except ValueError as error:
            shown = _MASK if field.metadata["is_secret"] else repr(text)
            reason = error_reason_pb2.ERROR_REASON_FIELD_INVALID
            violations.append(Violation(variable, reason, f"is {shown}; {error}"))
    if violations:
        raise InvalidInput(violations)
    return settings_class(**values)


def describe(settings: Any) -> dict[str, Any]:
    """Field name -> value for the log, secrets masked."""
    return {
        field.name: _MASK if field.metadata["is_secret"] and value else value
        for field in dataclasses.fields(settings)
        for value in [getattr(settings, field.name)]
    }


def _parse(text: str, kind: type, metadata: Mapping[str, Any]) -> Any:
    value = _PARSERS[kind](text)
    if metadata["choices"] and value not in metadata["choices"]:
        raise ValueError(f"it must be one of {', '.join(metadata['choices'])}")
    if metadata["minimum"] is not None and value < metadata["minimum"]:
        raise ValueError(f"it must be at least {metadata['minimum']}")
    if metadata["maximum"] is not None and value > metadata["maximum"]:
        raise ValueError(f"it must be at most {metadata['maximum']}")
    return value


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("it must be a whole number") from None


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("it must be a number") from None


def _parse_bool(text: str) -> bool:
    match text.lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ValueError("it must be true or false")


_PARSERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: _parse_int,
    float: _parse_float,
    bool: _parse_bool,
}
