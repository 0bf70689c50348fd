"""Documents, their attributes (google.protobuf.Struct) and the results of ingesting them.

`to_document` also checks the input of the client's users: a `Document`, or a dict as parsed from JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf import struct_pb2

from textmatch.documents import (
    MAX_EXACT_WHOLE_NUMBER,
    Document,
    check_item_count,
    document_violations,
    request_id_violation,
    version_violation,
)
from textmatch.errors import InvalidInput, TextMatchError, Violation, raise_violations
from textmatch.runtime.grpc_errors import from_status, to_status
from textmatch.types import DocumentResult, DocumentState, IngestOutcome, IngestStatus
from textmatch.v1 import matcher_service_pb2 as pb

MAX_INGEST_DOCUMENTS = 1_000

# A document, or a dict with the keys "id", "text" and optionally "attributes" and "version".
DocumentLike: TypeAlias = Document | Mapping[str, Any]

_OUTCOMES = {
    IngestOutcome.ACCEPTED: pb.INGEST_OUTCOME_ACCEPTED,
    IngestOutcome.UNCHANGED: pb.INGEST_OUTCOME_UNCHANGED,
    IngestOutcome.REJECTED: pb.INGEST_OUTCOME_REJECTED,
}
_OUTCOMES_OF_PROTO = {message: outcome for outcome, message in _OUTCOMES.items()}
_STATES = {
    None: pb.DOCUMENT_STATE_UNSPECIFIED,
    DocumentState.UNKNOWN: pb.DOCUMENT_STATE_UNKNOWN,
    DocumentState.PENDING: pb.DOCUMENT_STATE_PENDING,
    DocumentState.INDEXED: pb.DOCUMENT_STATE_INDEXED,
    DocumentState.FAILED: pb.DOCUMENT_STATE_FAILED,
    DocumentState.DELETED: pb.DOCUMENT_STATE_DELETED,
}
_STATES_OF_PROTO = {message: state for state, message in _STATES.items()}
_JSON_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_TYPES: dict[str, tuple[type, str]] = {
    "id": (str, "a string"),
    "text": (str, "a string"),
    "attributes": (Mapping, "an object"),
    "version": (int, "a whole number"),
}
_OPTIONAL = ("attributes", "version")


def to_document(value: DocumentLike) -> Document:
    """Check a document, and convert it if it is a dict.

    Raises:
        InvalidInput: naming every field that is missing, unknown, of the wrong type or out of range.
    """
    document = _from_mapping(vars(value) if isinstance(value, Document) else value)
    raise_violations(document_violations(document))
    return document


def to_proto(document: Document) -> pb.Document:
    """The document as a message.

    Raises:
        InvalidInput: naming the attribute that cannot be sent.
    """
    return pb.Document(
        id=document.id,
        text=document.text,
        attributes=to_struct(document.attributes) if document.attributes else None,
        version=document.version or None,
    )


def from_proto(message: pb.Document) -> Document:
    """The document of a message."""
    return Document(message.id, message.text, from_struct(message.attributes), message.version)


def ingest_request_from_proto(
    request: pb.IngestDocumentsRequest,
) -> tuple[dict[int, Document], list[DocumentResult]]:
    """The valid documents by their position in the request, and a rejection for each of the others.

    Raises:
        InvalidInput: the request has no documents or too many, or its id is not a UUID.
    """
    raise_violations([request_id_violation(request.request_id)])
    check_item_count("documents", len(request.documents), MAX_INGEST_DOCUMENTS)
    documents: dict[int, Document] = {}
    rejections: list[DocumentResult] = []
    for position, message in enumerate(request.documents):
        document = from_proto(message)
        prefix = f"documents[{position}]."
        violations = document_violations(document, prefix)
        if message.HasField("version") and message.version == 0:
            violations += filter(None, [version_violation(f"{prefix}version", 0)])
        if violations:
            rejections.append(rejection(position, document.id, InvalidInput(violations)))
        else:
            documents[position] = document
    return documents, rejections


def ingest_response_to_proto(results: Iterable[DocumentResult]) -> pb.IngestDocumentsResponse:
    """The results in the order of their positions."""
    return pb.IngestDocumentsResponse(
        results=[
            pb.IngestResult(
                id=result.id,
                outcome=_OUTCOMES[result.outcome],
                version=result.version,
                error=to_status(result.error) if result.error else None,
            )
            for result in sorted(results, key=lambda result: result.position)
        ]
    )


def ingest_results_from_proto(
    positions: Iterable[int], results: Sequence[pb.IngestResult]
) -> list[DocumentResult]:
    """The results of documents that have these positions in the caller's input."""
    return [_ingest_result(position, result) for position, result in zip(positions, results, strict=True)]


def rejection(position: int, document_id: str, error: TextMatchError) -> DocumentResult:
    """The result of a document that was not accepted."""
    return DocumentResult(position, document_id, IngestOutcome.REJECTED, error=error)


def ingest_status_to_proto(status: IngestStatus) -> pb.GetIngestStatusResponse:
    """The totals, and the state of one document if there is one."""
    return pb.GetIngestStatusResponse(
        document_count=status.document_count,
        queued_count=status.queued_count,
        oldest_queued_seconds=status.oldest_queued_seconds,
        dead_letter_count=status.dead_letter_count,
        collection=status.collection,
        model_id=status.model_id,
        document_state=_STATES[status.document_state],
        document_error=status.document_error or "",
    )


def ingest_status_from_proto(response: pb.GetIngestStatusResponse) -> IngestStatus:
    """The reverse of `ingest_status_to_proto`; a state of a newer server is UNKNOWN."""
    return IngestStatus(
        document_count=response.document_count,
        queued_count=response.queued_count,
        oldest_queued_seconds=response.oldest_queued_seconds,
        dead_letter_count=response.dead_letter_count,
        collection=response.collection,
        model_id=response.model_id,
        document_state=_STATES_OF_PROTO.get(response.document_state, DocumentState.UNKNOWN),
        document_error=response.document_error or None,
    )


def to_struct(attributes: Mapping[str, Any], path: str = "attributes") -> struct_pb2.Struct:
    """JSON-like values -> Struct.

    Raises:
        InvalidInput: naming the value that JSON or a double cannot represent ("attributes.added").
    """
    fields = {_key(key, path): to_value(value, f"{path}.{key}") for key, value in attributes.items()}
    return struct_pb2.Struct(fields=fields)


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Struct -> JSON-like values; whole numbers come back as int."""
    return {key: _from_value(value) for key, value in struct.fields.items()}


def to_value(value: Any, path: str) -> struct_pb2.Value:
    """One JSON-like value -> Value.

    Raises:
        InvalidInput: naming the value that JSON or a double cannot represent.
    """
    match value:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return struct_pb2.Value(bool_value=value)
        case str():
            return struct_pb2.Value(string_value=value)
        case int() if abs(value) > MAX_EXACT_WHOLE_NUMBER:
            raise InvalidInput.of_field(path, f"is {value}; integers are exact only up to 2^53-1")
        case int() | float():
            return struct_pb2.Value(number_value=value)
        case Mapping():
            return struct_pb2.Value(struct_value=to_struct(value, path))
        case list() | tuple():
            items = [to_value(item, f"{path}[{position}]") for position, item in enumerate(value)]
            return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
    raise InvalidInput.of_field(path, f"is a {type(value).__name__}; JSON has no such type")


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return key
    raise InvalidInput.of_field(path, f"has the key {key!r}; keys must be strings")


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= MAX_EXACT_WHOLE_NUMBER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
    return None


def _ingest_result(position: int, result: pb.IngestResult) -> DocumentResult:
    outcome = _OUTCOMES_OF_PROTO.get(result.outcome, IngestOutcome.REJECTED)
    if outcome is IngestOutcome.REJECTED:
        return rejection(position, result.id, from_status(result.error))
    return DocumentResult(position, result.id, outcome, result.version)


def _from_mapping(value: Any) -> Document:
    if not isinstance(value, Mapping):
        raise InvalidInput.of_field("document", f"is {_type_name(value)}; it must be an object")
    unknown = [name for name in value if name not in _TYPES]
    violations = [Violation.of_field(str(name), "is not a field of a document") for name in unknown]
    violations += [
        Violation.of_field(name, problem) for name in _TYPES if (problem := _type_problem(name, value))
    ]
    raise_violations(violations)
    attributes = value.get("attributes")
    version = value.get("version")
    return Document(
        id=value["id"],
        text=value["text"],
        attributes={} if attributes is None else attributes,
        version=0 if version is None else version,
    )


def _type_problem(name: str, value: Mapping[str, Any]) -> str | None:
    given = value.get(name)
    if given is None:
        return None if name in _OPTIONAL else "is missing"
    kind, kind_name = _TYPES[name]
    if isinstance(given, kind) and not isinstance(given, bool):
        return None
    return f"is {_type_name(given)}; it must be {kind_name}"


def _type_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), f"a {type(value).__name__}")
