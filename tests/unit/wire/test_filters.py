from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf import struct_pb2, timestamp_pb2

from textmatch.errors import InvalidInput
from textmatch.filters import (
    MAX_FIELD_BYTES,
    FieldExists,
    FieldIsNull,
    FieldMatch,
    FieldPrefix,
    FieldRange,
    FieldTimeRange,
    Filter,
    HasId,
)
from textmatch.v1 import matcher_service_pb2 as pb
from textmatch.wire.filters import (
    MAX_FILTER_BYTES,
    MAX_FILTER_DEPTH,
    MAX_FILTER_VALUES,
    filter_from_proto,
    filter_to_proto,
)

KINDS = ["match", "range", "exists", "filter", "time_range", "prefix", "is_null", "has_id"]
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)
EVERY_CONDITION = Filter(
    must=(
        FieldMatch("kind", ("a", "")),
        FieldMatch("year", (3, -1.5, 2**53 - 1)),
        FieldMatch("old", (True,)),
        FieldRange("year", gte=2020.0, lt=1e300),
        FieldTimeRange("published", gt=NEW_YEAR, lte=datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        HasId(("a", "文档 1")),
    ),
    should=(
        Filter(should=(FieldExists("tags"), FieldIsNull("tags"), FieldPrefix("path", "docs/")), min_should=2),
        FieldPrefix("path", ""),
    ),
    must_not=(FieldExists("作者.年龄"),),
)


def string(value: str) -> struct_pb2.Value:
    return struct_pb2.Value(string_value=value)


def number(value: float) -> struct_pb2.Value:
    return struct_pb2.Value(number_value=value)


def match(*values: struct_pb2.Value, field: str = "a") -> pb.Condition:
    return pb.Condition(match=pb.FieldMatch(field=field, values=values))


def test_every_condition_survives_the_journey():
    assert filter_from_proto(filter_to_proto(EVERY_CONDITION, "where"), "filter") == EVERY_CONDITION


def test_a_filter_is_converted_whole():
    message = pb.Filter(
        must=[match(string("a"), string("b"), field="kind")],
        should=[
            pb.Condition(range=pb.FieldRange(field="year", gte=2020, lt=2030)),
            pb.Condition(filter=pb.Filter(must=[pb.Condition(exists=pb.FieldExists(field="tags"))])),
        ],
        must_not=[match(number(3), field="n"), match(struct_pb2.Value(bool_value=True), field="b")],
        min_should=2,
    )
    assert filter_from_proto(message, "filter") == Filter(
        must=(FieldMatch("kind", ("a", "b")),),
        should=(FieldRange("year", gte=2020, lt=2030), Filter(must=(FieldExists("tags"),))),
        must_not=(FieldMatch("n", (3,)), FieldMatch("b", (True,))),
        min_should=2,
    )


def test_a_time_without_an_offset_is_sent_as_utc():
    east = NEW_YEAR.astimezone(timezone(timedelta(hours=8)))
    for bound in (NEW_YEAR.replace(tzinfo=None), east):
        sent = filter_to_proto(Filter(must=(FieldTimeRange("at", gte=bound),)), "where")
        assert sent.must[0].time_range.gte.ToDatetime(tzinfo=UTC) == NEW_YEAR


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            pb.Condition(),
            f"filter.must[0]: is empty; give one of {', '.join(KINDS)}",
        ),
        (match(string("a"), field=" "), "filter.must[0].match.field: is ' '; it must name an attribute"),
        (
            match(string("a"), field="é" * 129),
            "filter.must[0].match.field: has 258 bytes; the limit is 256",
        ),
        (match(), "filter.must[0].match.values: is empty; at least one value is needed"),
        (
            match(struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)),
            "filter.must[0].match.values[0]: must be a string, a number or a boolean",
        ),
        (match(number(float("inf"))), "filter.must[0].match.values[0]: must be a finite number"),
        (
            match(number(1), number(2.0**53)),
            "filter.must[0].match.values[1]: is 9.0072e+15; whole numbers are exact only up to 2^53-1",
        ),
        (
            match(number(-1e300)),
            "filter.must[0].match.values[0]: is -1.0000e+300; whole numbers are exact only up to 2^53-1",
        ),
        (
            match(number(1), struct_pb2.Value(bool_value=True)),
            "filter.must[0].match.values: mixes types; all values must be strings, numbers or booleans",
        ),
        (
            pb.Condition(range=pb.FieldRange(field="a")),
            "filter.must[0].range: has no bound; give gt, gte, lt or lte",
        ),
        (
            pb.Condition(range=pb.FieldRange(field="a", gt=float("nan"))),
            "filter.must[0].range.gt: is not a number",
        ),
        (
            pb.Condition(time_range=pb.FieldTimeRange(field="a")),
            "filter.must[0].time_range: has no bound; give gt, gte, lt or lte",
        ),
        (
            pb.Condition(time_range=pb.FieldTimeRange(field="a", gt=timestamp_pb2.Timestamp(seconds=2**62))),
            "filter.must[0].time_range.gt: must be a time in the years 1 to 9999",
        ),
        (pb.Condition(has_id=pb.HasId()), "filter.must[0].has_id.ids: is empty; at least one id is needed"),
        (pb.Condition(has_id=pb.HasId(ids=["a", ""])), "filter.must[0].has_id.ids[1]: is empty"),
        (
            pb.Condition(prefix=pb.FieldPrefix(field="a", prefix="x\0")),
            "filter.must[0].prefix.prefix: contains a NUL character",
        ),
    ],
)
def test_a_bad_condition_is_named_by_its_place(condition: pb.Condition, message: str):
    with pytest.raises(InvalidInput) as raised:
        filter_from_proto(pb.Filter(must=[condition]), "filter")
    assert str(raised.value) == message


@pytest.mark.parametrize("count", [-1, 2, 2**31 - 1])
def test_more_alternatives_than_there_are_cannot_be_asked_for(count: int):
    message = pb.Filter(should=[pb.Condition(exists=pb.FieldExists(field="a"))], min_should=count)
    with pytest.raises(InvalidInput, match=f"filter.min_should: is {count}; it must be 1 to 1"):
        filter_from_proto(message, "filter")


def nested(depth: int) -> pb.Filter:
    message = pb.Filter()
    for _ in range(depth):
        message = pb.Filter(must=[pb.Condition(filter=message)])
    return message


EXISTS = pb.Condition(exists=pb.FieldExists(field="a"))
LIMITS = {
    "depth": (nested(MAX_FILTER_DEPTH - 1), nested(MAX_FILTER_DEPTH), "nested deeper than 8 levels"),
    "deepest": (nested(0), nested(45), "nested deeper than 8 levels"),
    "conditions": (
        pb.Filter(must=[EXISTS] * 200, should=[EXISTS] * 56),
        pb.Filter(must=[EXISTS] * 200, must_not=[EXISTS] * 57),
        "has more than 256 conditions",
    ),
    "nested conditions": (
        pb.Filter(must=[pb.Condition(filter=pb.Filter(should=[EXISTS] * 255))]),
        pb.Filter(must=[pb.Condition(filter=pb.Filter(should=[EXISTS] * 256))]),
        "has more than 256 conditions",
    ),
    "values": (
        pb.Filter(must=[match(*[number(1)] * 500), pb.Condition(has_id=pb.HasId(ids=["a"] * 500))]),
        pb.Filter(must=[match(*[number(1)] * 500), pb.Condition(has_id=pb.HasId(ids=["a"] * 501))]),
        "has more than 1,000 values",
    ),
    "bytes": (
        pb.Filter(must=[match(*[string("x" * 30_000)] * 8)]),
        pb.Filter(must=[match(*[string("x" * 30_000)] * 9)]),
        "bytes; the limit is 262,144",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_filter_has_limits(limit: str):
    allowed, refused, message = LIMITS[limit]
    filter_from_proto(allowed, "filter")
    with pytest.raises(InvalidInput, match=message):
        filter_from_proto(refused, "filter")


def test_the_client_knows_the_limits_too():
    too_many = Filter(must=(FieldMatch("a", tuple(range(MAX_FILTER_VALUES + 1))),))
    with pytest.raises(InvalidInput, match="where: has more than 1,000 values"):
        filter_to_proto(too_many, "where")
    with pytest.raises(InvalidInput, match=f"field: has 257 bytes; the limit is {MAX_FIELD_BYTES}"):
        filter_to_proto(Filter(must=(FieldExists("x" * 257),)), "where")
    with pytest.raises(InvalidInput, match="whole numbers are exact only up to 2\\^53-1"):
        filter_to_proto(Filter(must=(FieldRange("a", gte=2**53),)), "where")
    with pytest.raises(InvalidInput, match=f"the limit is {MAX_FILTER_BYTES:,}"):
        filter_to_proto(Filter(must=(FieldMatch("a", ("x" * 30_000,) * 9),)), "where")
