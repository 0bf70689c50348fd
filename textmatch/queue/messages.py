"""The messages in the queue: Celery tasks that carry documents. producer.py writes them.

The task `textmatch.index_documents` has one positional argument, a string with this JSON object:

    {"schema_version": 2,
     "collection": "default",                           its name
     "generation": "5f3a9c1e",                          which creation of the collection is meant
     "accepted_at": 1700000000.25,                      seconds since 1970
     "documents": [{"id": "a", "text": "...", "attributes": {...}, "version": 1700000000250000}, ...],
     "traceparent": "00-..."}                           the sender's W3C trace context

`collection`, `generation`, `traceparent` and `attributes` are optional; unknown fields are refused. Without a
generation, the collection that has the name when the message is handled is meant. The argument is a string
because kombu would read some JSON objects in attributes as its own markers for dates and bytes. A message
holds 1 to 256 documents. An invalid document is refused alone, an unreadable message as a whole.

In the queue, the task is a Celery message (protocol 2):

    {"body": base64 of JSON [[argument], {}, {...}], "content-type": "application/json",
     "content-encoding": "utf-8", "headers": {"task", "id", ...}, "properties": {"body_encoding": "base64",
     ...}}

Anyone may push into the queue. Therefore every field is checked, and the message for Celery is rebuilt
without fields that make Celery drop, delay or divert a task: expiry, countdown, callbacks, a reused delivery
tag.
"""

from __future__ import annotations

import base64
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from textmatch.collection_config import DEFAULT_COLLECTION, name_violation
from textmatch.documents import Document, document_violations, version_violation
from textmatch.errors import InvalidInput

TASK_NAME = "textmatch.index_documents"
SCHEMA_VERSION = 2
MAX_DOCUMENTS = 256

_FIELDS = {"schema_version", "collection", "generation", "accepted_at", "documents", "traceparent"}
_DEFAULTS = {"collection": DEFAULT_COLLECTION, "generation": "", "traceparent": ""}
_DOCUMENT_FIELDS = {"id": str, "text": str, "attributes": dict, "version": int}
_JSON_NAMES: dict[type, str] = {str: "a string", dict: "an object", int: "a whole number"}
_CONTENT_TYPE = "application/json"
_CONTENT_ENCODING = "utf-8"
_BODY_ENCODING = "base64"


class MalformedMessage(ValueError):
    """A message, or an entry of one, does not have the form above."""


@dataclass(frozen=True)
class RefusedEntry:
    """An invalid document; `document` is None if the entry does not have the form of a document.

    Args:
        raw: a message with this entry alone.
    """

    document: Document | None
    raw: str
    error: str


@dataclass(frozen=True)
class Envelope:
    """What a message says about its documents.

    Attributes:
        collection: its name.
        generation: "" if the sender does not know it.
        accepted_at: seconds since 1970.
        traceparent: "" if there is none.
    """

    collection: str
    generation: str
    accepted_at: float
    traceparent: str = ""

    def wrap(self, entries: Sequence[str]) -> str:
        """The task's argument with these documents, each in JSON."""
        fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "collection": self.collection}
        fields |= {"generation": self.generation} if self.generation else {}
        fields |= {"accepted_at": self.accepted_at}
        fields |= {"traceparent": self.traceparent} if self.traceparent else {}
        return f'{json.dumps(fields)[:-1]}, "documents": [{", ".join(entries)}]}}'


@dataclass(frozen=True)
class IngestMessage:
    """The documents of a message, and the entries that are refused."""

    envelope: Envelope
    documents: tuple[Document, ...]
    refused: tuple[RefusedEntry, ...] = ()


def decode(argument: str) -> IngestMessage:
    """The documents in a task's argument, and the entries that are refused.

    Raises:
        MalformedMessage: the message cannot be read.
    """
    content = _json(argument, "the message")
    if isinstance(content, dict):
        content = {**_DEFAULTS, **content}
    _check_fields(content, _FIELDS, "the message")
    if content["schema_version"] != SCHEMA_VERSION:
        raise MalformedMessage(
            f"schema_version is {content['schema_version']!r}; only {SCHEMA_VERSION} can be read"
        )
    accepted_at = content["accepted_at"]
    is_number = isinstance(accepted_at, (int, float)) and not isinstance(accepted_at, bool)
    if not is_number or not math.isfinite(accepted_at):
        raise MalformedMessage(f"accepted_at is {accepted_at!r}; it must be a number of seconds")
    for field in _DEFAULTS:
        if not isinstance(content[field], str):
            raise MalformedMessage(f"{field} must be a string")
    if problem := name_violation("collection", content["collection"]):
        raise MalformedMessage(str(problem))
    entries = content["documents"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_DOCUMENTS:
        raise MalformedMessage(f"documents must be a list of 1 to {MAX_DOCUMENTS}")
    envelope = Envelope(
        content["collection"], content["generation"], float(accepted_at), content["traceparent"]
    )
    read = [_read_entry(entry, envelope) for entry in entries]
    return IngestMessage(
        envelope,
        documents=tuple(entry for entry in read if isinstance(entry, Document)),
        refused=tuple(entry for entry in read if isinstance(entry, RefusedEntry)),
    )


def _read_entry(entry: object, envelope: Envelope) -> Document | RefusedEntry:
    def refused(document: Document | None, error: str) -> RefusedEntry:
        return RefusedEntry(document, envelope.wrap([json.dumps(entry)]), error)

    try:
        document = document_from_json(entry)
        json.dumps(entry, ensure_ascii=False).encode()
    except (MalformedMessage, UnicodeEncodeError) as error:
        return refused(None, str(error))
    violations = document_violations(document)
    if not document.version and (problem := version_violation("version", document.version)):
        violations.append(problem)
    if violations:
        return refused(document, str(InvalidInput(violations)))
    return document


def document_as_json(document: Document) -> dict[str, Any]:
    """A document as it is in messages and dead letters."""
    return {
        "id": document.id,
        "text": document.text,
        "attributes": dict(document.attributes),
        "version": document.version,
    }


def document_from_json(content: object) -> Document:
    """The reverse of `document_as_json`; the values are not validated.

    Raises:
        MalformedMessage: a field is missing, unknown or of another type.
    """
    if isinstance(content, dict):
        content = {"attributes": {}, **content}
    fields = _check_fields(content, _DOCUMENT_FIELDS.keys(), "a document")
    for name, kind in _DOCUMENT_FIELDS.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise MalformedMessage(f"{name} is {fields[name]!r:.80}; it must be {_JSON_NAMES[kind]}")
    return Document(**fields)


def pack(argument: str, queue: str) -> str:
    """The Celery message for a task with this argument, as it goes into the queue of that name."""
    return json.dumps(_celery_message(argument, str(uuid.uuid4()), queue))


def unpack(raw: bytes, queue: str) -> dict[str, Any]:
    """The message for Celery, with a new delivery tag.

    Raises:
        MalformedMessage: it is not our task, or cannot be read.
    """
    message = _object(_json(raw, "the message"), "the message")
    headers = _object(message.get("headers"), "headers")
    properties = _object(message.get("properties"), "properties")
    for field, value, needed in (
        ("headers.task", headers.get("task"), TASK_NAME),
        ("headers.compression", headers.get("compression"), None),
        ("properties.body_encoding", properties.get("body_encoding"), _BODY_ENCODING),
        ("content-type", message.get("content-type"), _CONTENT_TYPE),
        ("content-encoding", message.get("content-encoding"), _CONTENT_ENCODING),
    ):
        if value != needed:
            raise MalformedMessage(f"{field} is {value!r}; it must be {needed!r}")
    task_id = headers.get("id")
    argument = _argument(message.get("body"))
    known_id = task_id if isinstance(task_id, str) and task_id else str(uuid.uuid4())
    return _celery_message(argument, known_id, queue)


def _celery_message(argument: str, task_id: str, queue: str) -> dict[str, Any]:
    return {
        "body": base64.b64encode(json.dumps([[argument], {}, {}]).encode()).decode(),
        "content-type": _CONTENT_TYPE,
        "content-encoding": _CONTENT_ENCODING,
        "headers": {"lang": "py", "task": TASK_NAME, "id": task_id},
        "properties": {
            "body_encoding": _BODY_ENCODING,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _argument(encoded_body: object) -> str:
    if not isinstance(encoded_body, str):
        raise MalformedMessage("body must be a string")
    try:
        body = base64.b64decode(encoded_body, validate=True)
    except ValueError as error:
        raise MalformedMessage(f"body is not base64: {error}") from error
    match _json(body, "body"):
        case [[str() as argument], dict() as kwargs, _] if not kwargs:
            return argument
    raise MalformedMessage("the task must have exactly one argument, a string")


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what} is not JSON: {error}") from error


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{what} must be a JSON object")
    return value


def _check_fields(content: object, expected: AbstractSet[str], what: str) -> Mapping[str, Any]:
    fields = _object(content, what)
    if missing := expected - fields.keys():
        raise MalformedMessage(f"{what} lacks {sorted(missing)}")
    if unknown := fields.keys() - expected:
        raise MalformedMessage(f"{what} has unknown fields {sorted(unknown)}")
    return fields
