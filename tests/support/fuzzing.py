"""Fuzzed requests: random messages of any type, and corrupted bytes of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from textmatch.v1 import collection_service_pb2 as collection_pb
from textmatch.v1 import encoder_service_pb2 as encoder_pb
from textmatch.v1 import matcher_service_pb2 as matcher_pb

_MAX_DEPTH = 4
_TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", " ", "\x00", "the cat sits", "a" * 5_000, "猫" * 300, "\u202e", "id-1", "."]),
)
_INTEGERS = st.one_of(st.integers(-3, 12), st.sampled_from([2**31 - 1, -(2**31), 1_000, 1_001]))
_LONG_INTEGERS = st.one_of(_INTEGERS, st.sampled_from([2**63 - 1, -(2**63), 2**53, 2**53 - 1]))
_HUGE = [1e300, -1e300, 2.0**53, -(2.0**53), 2.0**63, -(2.0**63), 2.0**64, 1e19, 5e-324, 1.7e308]
_NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, *_HUGE]))
_VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: _TEXTS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=300),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: _INTEGERS,
    FieldDescriptor.TYPE_INT64: _LONG_INTEGERS,
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: _NUMBERS,
    # Proto3 enums are open: any number may come.
    FieldDescriptor.TYPE_ENUM: st.one_of(st.integers(-1, 8), st.just(2**31 - 1)),
}

_FILTER = {"must": [{"match": {"field": "colour", "values": [{"string_value": "red"}]}}]}
_OTHER_FILTERS: list[dict[str, Any]] = [
    {"must": [{"match": {"field": "n", "values": [{"number_value": 1.5}, {"number_value": 2}]}}]},
    {"must_not": [{"range": {"field": "n", "gte": -1e300, "lt": 2.0**53}}]},
    {"must": [{"time_range": {"field": "at", "gte": {"seconds": 1_700_000_000, "nanos": 5}}}]},
    {"must": [{"time_range": {"field": "at", "lt": {"seconds": -62_135_596_800}}}]},
    {"must": [{"prefix": {"field": "colour", "prefix": "r"}}, {"is_null": {"field": "colour"}}]},
    {"should": [{"exists": {"field": "a"}}, {"has_id": {"ids": ["id-1"]}}], "min_should": 2},
]
# Around the limits of filters and attributes, and that of protobuf.
_DEPTHS = [1, 6, 7, 8, 9, 31, 32, 33, 48, 49, 50, 99, 100, 5_000]
_DOCUMENT = {"id": "id-1", "text": "the cat sits", "attributes": {"colour": "red"}, "version": 5}
_GOOD: list[Message] = [
    encoder_pb.EncodeRequest(texts=["the cat", "a dog"], role=1, priority=2, dimension=8),
    encoder_pb.EncodeStreamRequest(request=encoder_pb.EncodeRequest(texts=["the cat"])),
    encoder_pb.ScoreRequest(query="the cat", texts=["a dog", "a mat"]),
    encoder_pb.ScoreRequest(pairs=[encoder_pb.TextPair(first="a cat", second="a dog")], scorer=3),
    encoder_pb.ScoreRequest(query="the cat", embeddings=bytes(4 * 32 * 2), scorer=3),
    encoder_pb.GetModelsRequest(),
    matcher_pb.MatchRequest(query="the cat", options={"top_k": 3, "filter": _FILTER, "explain": True}),
    matcher_pb.BatchMatchRequest(queries=["the cat", "a dog"], options={"top_k": 3}),
    matcher_pb.MatchRequest(
        document_id="id-1", options={"exclude_ids": ["id-2"], "group_by": "colour", "require_complete": True}
    ),
    matcher_pb.FindDuplicatesRequest(filter=_FILTER, min_score=0.2, neighbors=3),
    matcher_pb.FindDuplicatesRequest(against="faq", resume_token="id-1"),  # noqa: S106 -- an id
    matcher_pb.IngestDocumentsRequest(documents=[_DOCUMENT, {"id": "id-2", "text": "a dog runs"}]),
    matcher_pb.GetDocumentRequest(id="id-1"),
    matcher_pb.GetDocumentsRequest(ids=["id-1", "id-9"]),
    matcher_pb.ListDocumentsRequest(filter=_FILTER, page_size=2, page_token="id-1"),  # noqa: S106 -- an id
    matcher_pb.CountDocumentsRequest(filter=_FILTER),
    matcher_pb.ListDeadLettersRequest(page_size=3, page_token="1764495000.5:a"),  # noqa: S106 -- a place
    matcher_pb.ReplayDeadLettersRequest(ids=["id-1"]),
    matcher_pb.DropDeadLettersRequest(ids=["id-1"], unreadable=True),
    matcher_pb.DeleteDocumentsRequest(ids=["id-3"], version=7),
    matcher_pb.DeleteDocumentsRequest(filter=_FILTER),
    matcher_pb.GetIngestStatusRequest(document_id="id-1"),
    collection_pb.CreateCollectionRequest(
        collection={"name": "faq", "payload_indexes": [{"field": "colour", "kind": 1, "is_tenant": True}]}
    ),
    collection_pb.GetCollectionRequest(name="default"),
    collection_pb.ListCollectionsRequest(page_size=3, page_token="a"),  # noqa: S106 -- not a secret
    collection_pb.DeleteCollectionRequest(name="faq"),
    collection_pb.AdoptCollectionRequest(name="faq"),
    *(matcher_pb.MatchRequest(query="the cat", options={"filter": one}) for one in _OTHER_FILTERS),
    *(matcher_pb.DeleteDocumentsRequest(filter=one, dry_run=True) for one in _OTHER_FILTERS),
    *(matcher_pb.ListDocumentsRequest(filter=one) for one in _OTHER_FILTERS),
    *(matcher_pb.CountDocumentsRequest(filter=one) for one in _OTHER_FILTERS),
]


def length_delimited(number: int, content: bytes) -> bytes:
    """A field of bytes or of a message on the wire."""
    length, size = bytearray(), len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def _nested(depth: int, numbers: Sequence[int], content: bytes) -> bytes:
    """The content inside so many messages, each reached by these fields from the outside to the inside."""
    for _ in range(depth):
        for number in reversed(numbers):
            content = length_delimited(number, content)
    return content


def _deep(depth: int) -> list[tuple[Descriptor, bytes]]:
    """Requests with structures of this depth. Protobuf's own classes cannot build the deepest."""
    should_filter, list_values, struct_fields = (2, 4), (6, 1), (5, 1, 2)
    where = _nested(depth, should_filter, b"")
    of_value = _nested(1, (1, 1, 2), _nested(depth, struct_fields, b"\x11" + bytes(8)))
    options = [length_delimited(3, one) for one in (where, of_value)]
    attributes = [
        _nested(1, (1, 2), _nested(depth, one, b"\x1a\x01x")) for one in (list_values, struct_fields)
    ]
    good = length_delimited(1, b"id-1") + length_delimited(2, b"the cat")
    return [
        *((matcher_pb.MatchRequest.DESCRIPTOR, b"\x0a\x01q" + length_delimited(2, one)) for one in options),
        *(
            (matcher_pb.BatchMatchRequest.DESCRIPTOR, b"\x0a\x01q" + length_delimited(2, one))
            for one in options
        ),
        (matcher_pb.DeleteDocumentsRequest.DESCRIPTOR, length_delimited(2, where) + b"\x28\x01"),
        (matcher_pb.ListDocumentsRequest.DESCRIPTOR, length_delimited(1, where)),
        (matcher_pb.CountDocumentsRequest.DESCRIPTOR, length_delimited(1, where)),
        (matcher_pb.FindDuplicatesRequest.DESCRIPTOR, length_delimited(3, where)),
        *(
            (
                matcher_pb.IngestDocumentsRequest.DESCRIPTOR,
                length_delimited(1, good + length_delimited(3, one)),
            )
            for one in attributes
        ),
    ]


_DEEP = [one for depth in _DEPTHS for one in _deep(depth)]


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with some of its fields set to some values, whether they make sense or not."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.booleans()) or (field.message_type and depth >= _MAX_DEPTH):
            continue
        _set(draw, message, field, depth)
    return message


def requests(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Bytes: random ones, messages of this type, good ones with one odd field, deep ones, and any spoilt."""
    good = [message for message in _GOOD if message.DESCRIPTOR is descriptor]
    sent = st.one_of(st.sampled_from(good).flatmap(_with_an_odd_field), messages(descriptor))
    sent_bytes = sent.map(lambda message: message.SerializeToString())
    others = [st.binary(max_size=200)]
    if deep := [data for kind, data in _DEEP if kind is descriptor]:
        others.append(st.sampled_from(deep))
    return st.one_of(sent_bytes, sent_bytes, sent_bytes.flatmap(_spoilt), *others)


@st.composite
def _with_an_odd_field(draw: st.DrawFn, good: Message) -> Message:
    """One field, at any depth, is replaced by any value of its type."""
    message = type(good)()
    message.CopyFrom(good)
    if not message.DESCRIPTOR.fields:
        return message
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    is_nested = bool(field.message_type) and not field.is_repeated
    if is_nested and message.HasField(field.name) and draw(st.booleans()):
        nested = getattr(message, field.name)
        nested.CopyFrom(draw(_with_an_odd_field(nested)))
        return message
    message.ClearField(field.name)
    _set(draw, message, field, depth=1)
    return message


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type and field.message_type.GetOptions().map_entry:
        _set_map(draw, message, field, depth)
    elif field.message_type and field.is_repeated:
        for _ in range(draw(st.integers(0, 3))):
            getattr(message, field.name).add().CopyFrom(draw(messages(field.message_type, depth + 1)))
    elif field.message_type:
        getattr(message, field.name).CopyFrom(draw(messages(field.message_type, depth + 1)))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_VALUES[field.type], max_size=4)))
    else:
        setattr(message, field.name, draw(_VALUES[field.type]))


def _set_map(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    """Of a google.protobuf.Struct: the only maps that requests have."""
    value_type = field.message_type.fields_by_name["value"].message_type
    for _ in range(draw(st.integers(0, 3))):
        key = draw(_TEXTS)
        getattr(message, field.name)[key].CopyFrom(draw(messages(value_type, depth + 1)))


@st.composite
def _spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        match draw(st.sampled_from(["change", "cut", "insert", "double"])):
            case "change" if at < len(changed):
                changed[at] = draw(st.integers(0, 255))
            case "cut":
                del changed[at:]
            case "insert":
                changed[at:at] = draw(st.binary(max_size=12))
            case "double":
                changed += changed[at:]
    return bytes(changed)
