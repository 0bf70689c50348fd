"""Documents, their attributes (google.protobuf.Struct) and the results of ingesting them.

`to_document` also checks the input of the client's users: a `Document`, or a dict as parsed from JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from textmatch.documents import (
    MAX_ATTRIBUTES_BYTES,
    MAX_DOCUMENT_TEXT_BYTES,
    MAX_EXACT_WHOLE_NUMBER,
    MAX_ID_BYTES,
    Document,
    check_item_count,
    document_violations,
    request_id_violation,
    version_violation,
)
from textmatch.errors import InvalidInput, TextMatchError, Violation, raise_violations
from textmatch.runtime.grpc_errors import from_status, to_status
from textmatch.runtime.request_limits import RawField, raw_fields
from textmatch.time_slices import in_slices
from textmatch.types import (
    DocumentResult,
    DocumentState,
    DocumentStatus,
    IngestOutcome,
    IngestStatus,
    Problem,
)
from textmatch.v1 import matcher_service_pb2 as pb

MAX_INGEST_DOCUMENTS = 1_000
# JSON has at least 3 bytes for a value that takes up to 11 bytes in a Struct: "0, ".
_MAX_STRUCT_BYTES = 4 * MAX_ATTRIBUTES_BYTES
# Every valid document fits. Larger attributes would take long to parse.
# A little more, so that attributes which are too large are said to be so.
_MAX_BYTES_WITHOUT_TEXT = _MAX_STRUCT_BYTES + 32 * 1024
MAX_DOCUMENT_BYTES = MAX_DOCUMENT_TEXT_BYTES + _MAX_BYTES_WITHOUT_TEXT
_MAX_DOCUMENT_FIELDS = 100
_MAX_RAW_DOCUMENTS = 10 * MAX_INGEST_DOCUMENTS
_DOCUMENTS = pb.IngestDocumentsRequest.DOCUMENTS_FIELD_NUMBER
_COLLECTION = pb.IngestDocumentsRequest.COLLECTION_FIELD_NUMBER
_REQUEST_ID = pb.IngestDocumentsRequest.REQUEST_ID_FIELD_NUMBER

# A document, or a dict with the keys "id", "text" and optionally "attributes", "version" and
# "expected_version"; of a delete: "id", "deleted" and optionally these two.
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
    "deleted": (bool, "a boolean"),
    "expected_version": (int, "a whole number"),
}
_OPTIONAL = ("attributes", "version", "deleted", "expected_version")


def to_document(value: DocumentLike) -> Document:
    """Check a document, and convert it if it is a dict.

    Raises:
        InvalidInput: naming every field that is missing, unknown, of the wrong type or out of range.
    """
    document = _from_mapping(_fields(value) if isinstance(value, Document) else value)
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
        deleted=document.deleted,
        expected_version=document.expected_version,
    )


def from_proto(message: pb.Document) -> Document:
    """The document of a message."""
    return Document(
        message.id,
        message.text,
        from_struct(message.attributes),
        message.version,
        deleted=message.deleted,
        expected_version=message.expected_version if message.HasField("expected_version") else None,
    )


class IngestRequest:
    """An IngestDocumentsRequest whose documents are parsed one after the other, when they are read.

    Attributes:
        collection, request_id: as in the message.

    Raises:
        InvalidInput: it has far too many documents.
        DecodeError: it is not such a message.
    """

    DESCRIPTOR = pb.IngestDocumentsRequest.DESCRIPTOR

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.collection = self.request_id = ""
        self._documents: list[RawField] = []
        for one in raw_fields(data, _MAX_RAW_DOCUMENTS):
            if one.number == _DOCUMENTS:
                self._documents.append(one)
            elif one.number == _COLLECTION:
                self.collection = data[one.start : one.end].decode(errors="replace")
            elif one.number == _REQUEST_ID:
                self.request_id = data[one.start : one.end].decode(errors="replace")

    def __len__(self) -> int:
        return len(self._documents)

    def ByteSize(self) -> int:  # noqa: N802 -- the name in protobuf
        """As of a message."""
        return len(self._data)

    def documents(self) -> Iterator[tuple[str, Document | InvalidInput]]:
        """The id of each document, and the document or what is wrong with it."""
        for position, field in enumerate(self._documents):
            yield _read_document(self._data[field.start : field.end], f"documents[{position}]")


def _read_document(data: bytes, name: str) -> tuple[str, Document | InvalidInput]:
    if len(data) > MAX_DOCUMENT_BYTES:
        description = f"has {len(data):,} bytes as a message; the limit is {MAX_DOCUMENT_BYTES:,}"
        return _id_of_unread_document(data), InvalidInput.of_field(name, description)
    try:
        if (other_bytes := _bytes_without_text(data)) > _MAX_BYTES_WITHOUT_TEXT:
            description = (
                f"has {other_bytes:,} bytes as a message without its text; the limit is "
                f"{_MAX_BYTES_WITHOUT_TEXT:,}"
            )
            return _id_of_unread_document(data), InvalidInput.of_field(name, description)
        message = pb.Document.FromString(data)
    except InvalidInput as error:
        return _id_of_unread_document(data), InvalidInput.of_field(name, str(error))
    except DecodeError:
        description = "must be a protobuf message of the type Document, nested at most 100 messages deep"
        return _id_of_unread_document(data), InvalidInput.of_field(name, description)
    document = from_proto(message)
    violations = document_violations(document, f"{name}.")
    if message.HasField("version") and message.version == 0:
        violations += filter(None, [version_violation(f"{name}.version", 0)])
    if violations:
        # An answer with the ids of many documents must be smaller than clients accept.
        return document.id.encode()[:MAX_ID_BYTES].decode(errors="ignore"), InvalidInput(violations)
    return document.id, document


def _bytes_without_text(data: bytes) -> int:
    """The size of a document without its text; read only if the whole may be too large."""
    if len(data) <= _MAX_BYTES_WITHOUT_TEXT:
        return 0
    fields = raw_fields(data, _MAX_DOCUMENT_FIELDS)
    texts = [one for one in fields if one.number == pb.Document.TEXT_FIELD_NUMBER]
    return len(data) - sum(one.end - one.start for one in texts)


def _id_of_unread_document(data: bytes) -> str:
    """The id of a document that cannot be parsed; "" if it is not where writers put it."""
    try:
        first = next(raw_fields(data, 1))
    except DecodeError:
        return ""
    is_id = first.number == pb.Document.ID_FIELD_NUMBER and first.end - first.start <= MAX_ID_BYTES
    return data[first.start : first.end].decode(errors="replace") if is_id else ""


async def ingest_request_from_proto(
    request: IngestRequest,
) -> tuple[dict[int, Document], list[DocumentResult]]:
    """The valid documents by their position in the request, and a rejection for each of the others.

    Other calls run in between, because the attributes of many documents take long to convert.

    Raises:
        InvalidInput: the request has no documents or too many, or its id is not a UUID.
    """
    raise_violations([request_id_violation(request.request_id)])
    check_item_count("documents", len(request), MAX_INGEST_DOCUMENTS)
    documents: dict[int, Document] = {}
    rejections: list[DocumentResult] = []
    async for position, (document_id, document) in in_slices(enumerate(request.documents())):
        if isinstance(document, Document):
            documents[position] = document
        else:
            rejections.append(rejection(position, document_id, document))
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
    """The totals, and the states of documents."""
    return pb.GetIngestStatusResponse(
        document_count=status.document_count,
        queued_count=status.queued_count,
        oldest_queued_seconds=status.oldest_queued_seconds,
        dead_letter_count=status.dead_letter_count,
        collection=status.collection,
        model_id=status.model_id,
        document_state=_STATES[status.document_state],
        document_error=status.document_error or "",
        truncated_count=status.truncated_count,
        problems=[
            pb.Problem(source=one.source, collection=one.collection, reason=one.reason, message=one.message)
            for one in status.problems
        ],
        documents=[
            pb.DocumentStatus(id=one.id, state=_STATES[one.state], version=one.version, error=one.error)
            for one in status.documents
        ],
    )


def ingest_status_from_proto(response: pb.GetIngestStatusResponse) -> IngestStatus:
    """The reverse of `ingest_status_to_proto`; a state of a newer server is UNKNOWN."""
    return IngestStatus(
        document_count=response.document_count if response.HasField("document_count") else None,
        queued_count=response.queued_count,
        oldest_queued_seconds=response.oldest_queued_seconds,
        dead_letter_count=response.dead_letter_count,
        collection=response.collection,
        model_id=response.model_id,
        document_state=_STATES_OF_PROTO.get(response.document_state, DocumentState.UNKNOWN),
        document_error=response.document_error or None,
        problems=tuple(
            Problem(one.source, one.collection, one.reason, one.message) for one in response.problems
        ),
        truncated_count=response.truncated_count if response.HasField("truncated_count") else None,
        documents=tuple(
            DocumentStatus(
                one.id, _STATES_OF_PROTO.get(one.state, DocumentState.UNKNOWN), one.version, one.error
            )
            for one in response.documents
        ),
    )


def to_struct(attributes: Mapping[str, Any], path: str = "attributes") -> struct_pb2.Struct:
    """JSON-like values -> Struct.

    Raises:
        InvalidInput: naming the value that JSON or a double cannot represent ("attributes.added").
    """
    struct = struct_pb2.Struct()
    fill_struct(struct, attributes, path)
    return struct


def fill_struct(struct: struct_pb2.Struct, attributes: Mapping[str, Any], path: str = "attributes") -> None:
    """As `to_struct`, into a message that exists, which saves a copy."""
    try:
        _fill_struct(struct, attributes)
    except _Unsendable as error:
        raise error.with_path(path) from None


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Struct -> JSON-like values; whole numbers come back as int.

    The keys are sorted: a Struct has them in another order in each process, and exports are to be equal.
    """
    fields = struct.fields
    return {key: _from_value(fields[key]) for key in sorted(fields)}


def to_value(value: Any, path: str) -> struct_pb2.Value:
    """One JSON-like value -> Value.

    Raises:
        InvalidInput: naming the value that JSON or a double cannot represent.
    """
    message = struct_pb2.Value()
    try:
        _fill(message, value)
    except _Unsendable as error:
        raise error.with_path(path) from None
    return message


class _Unsendable(Exception):
    """A value that cannot be sent. Its path grows on the way up, so that good values need none."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.steps: list[str] = []

    def with_path(self, path: str) -> InvalidInput:
        return InvalidInput.of_field(path + "".join(reversed(self.steps)), str(self))


def _fill_struct(struct: struct_pb2.Struct, values: Mapping[str, Any]) -> None:
    """Fill a message in place, which is several times faster than building messages."""
    fields = struct.fields
    for key, value in values.items():
        if not isinstance(key, str):
            raise _Unsendable(f"has the key {key!r}; keys must be strings")
        try:
            _fill(fields[key], value)
        except _Unsendable as error:
            error.steps.append(f".{key}")
            raise


def _fill(message: struct_pb2.Value, value: Any) -> None:
    match value:
        case None:
            message.null_value = struct_pb2.NULL_VALUE
        case bool():
            message.bool_value = value
        case str():
            message.string_value = value
        case int() if abs(value) > MAX_EXACT_WHOLE_NUMBER:
            raise _Unsendable(f"is {value}; integers are exact only up to 2^53-1")
        case int() | float():
            message.number_value = value
        case Mapping():
            message.struct_value.SetInParent()
            _fill_struct(message.struct_value, value)
        case list() | tuple():
            message.list_value.SetInParent()
            _fill_list(message.list_value, value)
        case _:
            raise _Unsendable(f"is a {type(value).__name__}; JSON has no such type")


def _fill_list(message: struct_pb2.ListValue, values: Sequence[Any]) -> None:
    add = message.values.add
    for position, value in enumerate(values):
        try:
            _fill(add(), value)
        except _Unsendable as error:
            error.steps.append(f"[{position}]")
            raise


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


def _fields(document: Document) -> dict[str, Any]:
    """What a client may set."""
    return {name: value for name, value in vars(document).items() if name in _TYPES}


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
        text=value.get("text") or "",
        attributes={} if attributes is None else attributes,
        version=0 if version is None else version,
        deleted=bool(value.get("deleted")),
        expected_version=value.get("expected_version"),
    )


def _type_problem(name: str, value: Mapping[str, Any]) -> str | None:
    given = value.get(name)
    if given is None:
        is_optional = name in _OPTIONAL or (name == "text" and value.get("deleted") is True)
        return None if is_optional else "is missing"
    kind, kind_name = _TYPES[name]
    if isinstance(given, kind) and (kind is bool or not isinstance(given, bool)):
        return None
    return f"is {_type_name(given)}; it must be {kind_name}"


def _type_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), f"a {type(value).__name__}")
