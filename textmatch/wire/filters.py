"""Filters to their form on the wire."""

from __future__ import annotations

from textmatch.documents import text_violation
from textmatch.errors import InvalidInput
from textmatch.filters import Condition, FieldExists, FieldMatch, FieldRange, Filter
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.attributes import to_value


def to_proto(condition: Filter, path: str) -> pb.Filter:
    """The tree as messages; `path` names it in errors ("where").

    Raises:
        InvalidInput: naming a field name or value that cannot be sent.
    """
    return pb.Filter(
        must=_conditions(condition.must, f"{path}.must"),
        should=_conditions(condition.should, f"{path}.should"),
        must_not=_conditions(condition.must_not, f"{path}.must_not"),
    )


def _conditions(conditions: tuple[Condition, ...], path: str) -> list[pb.Condition]:
    return [_condition(condition, f"{path}[{position}]") for position, condition in enumerate(conditions)]


def _condition(condition: Condition, path: str) -> pb.Condition:
    match condition:
        case FieldMatch(field, values):
            _check_text(f"{path}.field", field)
            messages = []
            for position, value in enumerate(values):
                value_path = f"{path}.values[{position}]"
                if isinstance(value, str):
                    _check_text(value_path, value)
                messages.append(to_value(value, value_path))
            return pb.Condition(match=pb.FieldMatch(field=field, values=messages))
        case FieldRange(field, gt, gte, lt, lte):
            _check_text(f"{path}.field", field)
            return pb.Condition(range=pb.FieldRange(field=field, gt=gt, gte=gte, lt=lt, lte=lte))
        case FieldExists(field):
            _check_text(f"{path}.field", field)
            return pb.Condition(exists=pb.FieldExists(field=field))
        case Filter():
            return pb.Condition(filter=to_proto(condition, path))


def _check_text(path: str, text: str) -> None:
    """An attribute may equal the empty string, but a lone surrogate cannot be sent."""
    if text and (violation := text_violation(path, text)) is not None:
        raise InvalidInput([violation])
