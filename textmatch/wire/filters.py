"""Filters ⇄ messages. Limits are checked in both directions, before anything is converted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from google.protobuf import struct_pb2, timestamp_pb2

from textmatch.documents import MAX_EXACT_WHOLE_NUMBER, id_violation, text_violation
from textmatch.errors import InvalidInput, raise_violations
from textmatch.filters import (
    MAX_FIELD_BYTES,
    Condition,
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
    Value,
    have_one_type,
    in_utc,
)
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.documents import to_value

MAX_FILTER_BYTES = 256 * 1024
MAX_FILTER_CONDITIONS = 256
MAX_FILTER_DEPTH = 8
MAX_FILTER_VALUES = 1_000

_BOUNDS = ("gt", "gte", "lt", "lte")
_EXACT = "whole numbers are exact only up to 2^53-1"


def filter_to_proto(condition: Filter, path: str) -> pb.Filter:
    """The tree as a message; `path` names it in errors ("where").

    Raises:
        InvalidInput: naming a field name or value that cannot be sent, or the limit that is exceeded.
    """
    message = _filter_to_proto(condition, path)
    _check_size(message, path)
    return message


def filter_from_proto(message: pb.Filter, path: str) -> Filter:
    """A checked filter.

    Raises:
        InvalidInput: naming the condition that is wrong ("filter.must[2].match.field").
    """
    _check_size(message, path)
    return _filter_from_proto(message, path)


def _check_size(message: pb.Filter, path: str) -> None:
    """Refuse a filter that would take long to convert. Takes little time for a message of any size."""
    size_bytes = message.ByteSize()
    if size_bytes > MAX_FILTER_BYTES:
        raise InvalidInput.of_field(path, f"has {size_bytes:,} bytes; the limit is {MAX_FILTER_BYTES:,}")
    level = [message]
    conditions = values = 0
    for _ in range(MAX_FILTER_DEPTH):
        conditions += sum(len(one.must) + len(one.should) + len(one.must_not) for one in level)
        if conditions > MAX_FILTER_CONDITIONS:
            raise InvalidInput.of_field(path, f"has more than {MAX_FILTER_CONDITIONS} conditions")
        children = [child for one in level for child in _children(one)]
        values += sum(len(child.match.values) + len(child.has_id.ids) for child in children)
        if values > MAX_FILTER_VALUES:
            raise InvalidInput.of_field(path, f"has more than {MAX_FILTER_VALUES:,} values")
        level = [child.filter for child in children if child.HasField("filter")]
        if not level:
            return
    raise InvalidInput.of_field(path, f"is nested deeper than {MAX_FILTER_DEPTH} levels")


def _children(message: pb.Filter) -> Iterator[pb.Condition]:
    yield from message.must
    yield from message.should
    yield from message.must_not


def _filter_to_proto(condition: Filter, path: str) -> pb.Filter:
    return pb.Filter(
        must=_conditions_to_proto(condition.must, f"{path}.must"),
        should=_conditions_to_proto(condition.should, f"{path}.should"),
        must_not=_conditions_to_proto(condition.must_not, f"{path}.must_not"),
        min_should=_min_should(condition.min_should, len(condition.should), path),
    )


def _conditions_to_proto(conditions: Iterable[Condition], path: str) -> list[pb.Condition]:
    return [
        _condition_to_proto(condition, f"{path}[{position}]") for position, condition in enumerate(conditions)
    ]


def _condition_to_proto(condition: Condition, path: str) -> pb.Condition:
    match condition:
        case Filter():
            return pb.Condition(filter=_filter_to_proto(condition, path))
        case HasId(ids):
            _check_ids(ids, f"{path}.ids")
            return pb.Condition(has_id=pb.HasId(ids=ids))
    _check_text(f"{path}.field", condition.field)
    field = _field_name(condition.field, f"{path}.field")
    match condition:
        case FieldMatch(_, values):
            messages = [
                _value_to_proto(value, f"{path}.values[{position}]") for position, value in enumerate(values)
            ]
            return pb.Condition(match=pb.FieldMatch(field=field, values=messages))
        case FieldRange(_, gt, gte, lt, lte):
            _check_exact({"gt": gt, "gte": gte, "lt": lt, "lte": lte}, path)
            return pb.Condition(range=pb.FieldRange(field=field, gt=gt, gte=gte, lt=lt, lte=lte))
        case FieldTimeRange():
            bounds = {name: _timestamp(getattr(condition, name)) for name in _BOUNDS}
            return pb.Condition(time_range=pb.FieldTimeRange(field=field, **bounds))
        case FieldPrefix(_, prefix):
            _check_text(f"{path}.prefix", prefix)
            return pb.Condition(prefix=pb.FieldPrefix(field=field, prefix=prefix))
        case FieldExists():
            return pb.Condition(exists=pb.FieldExists(field=field))
        case FieldIsNull():
            return pb.Condition(is_null=pb.FieldIsNull(field=field))


def _value_to_proto(value: Value, path: str) -> struct_pb2.Value:
    if isinstance(value, str):
        _check_text(path, value)
    return to_value(value, path)


def _check_exact(bounds: dict[str, float | None], path: str) -> None:
    """Refuse whole numbers that a double would round."""
    for name, bound in bounds.items():
        if isinstance(bound, int) and abs(bound) > MAX_EXACT_WHOLE_NUMBER:
            raise InvalidInput.of_field(f"{path}.{name}", f"is {bound:.4e}; {_EXACT}")


def _timestamp(bound: datetime | None) -> timestamp_pb2.Timestamp | None:
    if bound is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(in_utc(bound))
    return message


def _check_text(path: str, text: str) -> None:
    """Refuse a lone surrogate, which cannot be sent. An attribute may equal the empty string."""
    if text:
        raise_violations([text_violation(path, text)])


def _filter_from_proto(message: pb.Filter, path: str) -> Filter:
    return Filter(
        must=_conditions_from_proto(message.must, f"{path}.must"),
        should=_conditions_from_proto(message.should, f"{path}.should"),
        must_not=_conditions_from_proto(message.must_not, f"{path}.must_not"),
        min_should=_min_should(message.min_should or 1, len(message.should), path),
    )


def _min_should(count: int, should_count: int, path: str) -> int:
    highest = max(1, should_count)
    if not 1 <= count <= highest:
        raise InvalidInput.of_field(f"{path}.min_should", f"is {count}; it must be 1 to {highest}")
    return count


def _conditions_from_proto(messages: Sequence[pb.Condition], path: str) -> tuple[Condition, ...]:
    return tuple(
        _condition_from_proto(message, f"{path}[{position}]") for position, message in enumerate(messages)
    )


def _condition_from_proto(message: pb.Condition, path: str) -> Condition:
    kind = message.WhichOneof("condition")
    path = f"{path}.{kind}" if kind else path
    match kind:
        case "match":
            name = _field_name(message.match.field, f"{path}.field")
            return FieldMatch(name, _match_values(message.match.values, f"{path}.values"))
        case "range":
            return _range_from_proto(message.range, path)
        case "time_range":
            return _time_range_from_proto(message.time_range, path)
        case "prefix":
            if "\0" in message.prefix.prefix:
                raise InvalidInput.of_field(f"{path}.prefix", "contains a NUL character")
            return FieldPrefix(_field_name(message.prefix.field, f"{path}.field"), message.prefix.prefix)
        case "exists":
            return FieldExists(_field_name(message.exists.field, f"{path}.field"))
        case "is_null":
            return FieldIsNull(_field_name(message.is_null.field, f"{path}.field"))
        case "has_id":
            _check_ids(message.has_id.ids, f"{path}.ids")
            return HasId(tuple(message.has_id.ids))
        case "filter":
            return _filter_from_proto(message.filter, path)
    known = ", ".join(field.name for field in pb.Condition.DESCRIPTOR.fields)
    raise InvalidInput.of_field(path, f"is empty; give one of {known}")


def _field_name(name: str, path: str) -> str:
    if not name.strip() or "\0" in name:
        raise InvalidInput.of_field(path, f"is {name!r:.80}; it must name an attribute")
    size_bytes = len(name.encode())
    if size_bytes > MAX_FIELD_BYTES:
        raise InvalidInput.of_field(path, f"has {size_bytes:,} bytes; the limit is {MAX_FIELD_BYTES}")
    return name


def _check_ids(ids: Sequence[str], path: str) -> None:
    if not ids:
        raise InvalidInput.of_field(path, "is empty; at least one id is needed")
    raise_violations(id_violation(f"{path}[{position}]", one) for position, one in enumerate(ids))


def _match_values(values: Sequence[struct_pb2.Value], path: str) -> tuple[Value, ...]:
    if not values:
        raise InvalidInput.of_field(path, "is empty; at least one value is needed")
    converted = tuple(_match_value(value, f"{path}[{position}]") for position, value in enumerate(values))
    if not have_one_type(converted):
        raise InvalidInput.of_field(path, "mixes types; all values must be strings, numbers or booleans")
    return converted


def _match_value(value: struct_pb2.Value, path: str) -> Value:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            return _match_number(value.number_value, path)
    raise InvalidInput.of_field(path, "must be a string, a number or a boolean")


def _match_number(number: float, path: str) -> int | float:
    if not math.isfinite(number):
        raise InvalidInput.of_field(path, "must be a finite number")
    if not number.is_integer():
        return number
    if abs(number) > MAX_EXACT_WHOLE_NUMBER:
        raise InvalidInput.of_field(path, f"is {number:.4e}; {_EXACT}")
    return int(number)


def _range_from_proto(message: pb.FieldRange, path: str) -> FieldRange:
    bounds = {name: getattr(message, name) for name in _BOUNDS if message.HasField(name)}  # type: ignore[arg-type]
    _check_bounds(bounds, path)
    for name, bound in bounds.items():
        if math.isnan(bound):
            raise InvalidInput.of_field(f"{path}.{name}", "is not a number")
    return FieldRange(_field_name(message.field, f"{path}.field"), **bounds)


def _time_range_from_proto(message: pb.FieldTimeRange, path: str) -> FieldTimeRange:
    bounds = {
        name: _moment(getattr(message, name), f"{path}.{name}")
        for name in _BOUNDS
        if message.HasField(name)  # type: ignore[arg-type]
    }
    _check_bounds(bounds, path)
    return FieldTimeRange(_field_name(message.field, f"{path}.field"), **bounds)


def _check_bounds(bounds: dict[str, float] | dict[str, datetime], path: str) -> None:
    if not bounds:
        raise InvalidInput.of_field(path, "has no bound; give gt, gte, lt or lte")


def _moment(message: timestamp_pb2.Timestamp, path: str) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidInput.of_field(path, "must be a time in the years 1 to 9999") from None
