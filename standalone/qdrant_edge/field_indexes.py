"""Payload indexes, from and to protobuf."""

from __future__ import annotations

from typing import Any, Final

import qdrant_edge as edge
from qdrant_client import grpc as pb

from standalone.qdrant_edge.enums import to_edge_enum, to_proto_enum
from standalone.qdrant_edge.errors import invalid

_PARAMS: Final[dict[str, type]] = {
    "keyword_index_params": edge.KeywordIndexParams,
    "integer_index_params": edge.IntegerIndexParams,
    "float_index_params": edge.FloatIndexParams,
    "geo_index_params": edge.GeoIndexParams,
    "text_index_params": edge.TextIndexParams,
    "bool_index_params": edge.BoolIndexParams,
    "datetime_index_params": edge.DatetimeIndexParams,
    "uuid_index_params": edge.UuidIndexParams,
}
_FIELD_TYPE_PREFIX: Final = "FieldType"
# Parameters that are more than a number, a flag or a text.
_STRUCTURED: Final = frozenset({"memory", "tokenizer", "stopwords", "stemmer", "scoring", "prefix"})


def index_schema(request: pb.CreateFieldIndexCollection) -> Any:
    """The kind of index that a request asks for, with its parameters if there are any."""
    kind = request.field_index_params.WhichOneof("index_params")
    if kind is not None:
        return _to_edge_params(kind, getattr(request.field_index_params, kind))
    if not request.HasField("field_type"):
        raise invalid("field_type or field_index_params is required")
    name = pb.FieldType.Name(request.field_type).removeprefix(_FIELD_TYPE_PREFIX)
    return getattr(edge.PayloadSchemaType, name)


def describe_index(info: edge.PayloadIndexInfo) -> pb.PayloadSchemaInfo:
    """An existing index as `GetCollectionInfo` shows it."""
    data_type = to_proto_enum(pb.PayloadSchemaType, info.data_type)
    described = pb.PayloadSchemaInfo(data_type=data_type, points=info.points)
    for field, params_type in _PARAMS.items():
        if isinstance(info.params, params_type):
            _describe_params(getattr(described.params, field), info.params)
    return described


def _to_edge_params(kind: str, message: Any) -> Any:
    arguments = {field.name: value for field, value in message.ListFields() if field.name not in _STRUCTURED}
    fields = message.DESCRIPTOR.fields_by_name
    if message.memory != pb.MemoryUnknown:
        arguments["memory"] = to_edge_enum(edge.Memory, pb.Memory, message.memory)
    if "prefix" in fields and message.HasField("prefix"):
        arguments["prefix"] = True
    if kind == "text_index_params":
        arguments |= _text_arguments(message)
    return _PARAMS[kind](**arguments)


def _text_arguments(message: pb.TextIndexParams) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if message.tokenizer != pb.Unknown:
        arguments["tokenizer"] = to_edge_enum(edge.TokenizerType, pb.TokenizerType, message.tokenizer)
    if message.HasField("stopwords"):
        languages = {getattr(edge.Language, name.capitalize()) for name in message.stopwords.languages}
        arguments["stopwords"] = edge.StopwordsSet(languages, set(message.stopwords.custom))
    if message.stemmer.HasField("snowball"):
        language = getattr(edge.SnowballLanguage, message.stemmer.snowball.language.capitalize())
        arguments["stemmer"] = edge.SnowballParams(language)
    if message.stemmer.HasField("disabled"):
        arguments["stemmer"] = edge.DisabledStemmer()
    if message.HasField("scoring"):
        arguments["scoring"] = True
    return arguments


def _describe_params(message: Any, params: Any) -> None:
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        value = getattr(params, field.name, None)
        if value is None:
            continue
        if field.name == "tokenizer":
            message.tokenizer = to_proto_enum(pb.TokenizerType, value)
        elif field.name == "memory":
            message.memory = to_proto_enum(pb.Memory, value)
        elif field.name not in _STRUCTURED:
            setattr(message, field.name, value)
