"""What travels in a task: documents on their way to the index.

The task `textmatch.index_documents` has one positional argument, a string that holds this JSON object:

    {"schema_version": 1,
     "accepted_at": 1700000000.25,                      seconds since 1970
     "documents": [{"id": "a", "text": "...", "attributes": {...}, "version": 1700000000250000}, ...],
     "traceparent": "00-..."}                           the trace of whoever sent it, as W3C writes it

`attributes` and `traceparent` may be left out; nothing else may, and nothing else may be there. A string,
because kombu would read some JSON objects in attributes as its own markers for dates and bytes. A message
holds 1 to 256 documents. One bad document is refused alone; a message that cannot be read at all is refused
whole.

Celery's message around a task, as it lies in the queue: checked, and made anew from what is needed.

    {"body": base64 of JSON [[argument], {}, {...}], "content-type": "application/json",
     "content-encoding": "utf-8", "headers": {"task", "id", ...}, "properties": {"body_encoding": "base64",
     ...}}

Anyone may push into the queue, so that nothing is taken for granted. What could make Celery drop, delay or
divert a task (expiry, countdown, callbacks, a delivery tag used twice) is left behind.
"""

from __future__ import annotations

import base64
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textmatch.documents import Document, document_violations, version_violation
from textmatch.errors import InvalidInput
from textmatch.queue.keys import QUEUE

TASK_NAME = "textmatch.index_documents"
SCHEMA_VERSION = 1
MAX_DOCUMENTS = 256
# Most of what a message costs is the same however much is in it: a request of a client should be one.
_TARGET_DOCUMENTS = MAX_DOCUMENTS
_TARGET_BYTES = 256 * 1024

_FIELDS = {"schema_version", "accepted_at", "documents", "traceparent"}
_DOCUMENT_FIELDS = {"id", "text", "attributes", "version"}


class MalformedMessage(ValueError):
    """A message, or an entry of one, has another form than the one above."""


@dataclass(frozen=True)
class RefusedEntry:
    """An entry that is no valid document, or not even of the form of one: then `document` is None.

    Args:
        raw: a message with this entry alone.
    """

    document: Document | None
    raw: str
    error: str


@dataclass(frozen=True)
class IngestMessage:
    """`accepted_at` in seconds since 1970; `traceparent` is empty if there is none."""

    accepted_at: float
    documents: tuple[Document, ...]
    refused: tuple[RefusedEntry, ...] = ()
    traceparent: str = ""


def encode(documents: Sequence[Document], accepted_at: float, traceparent: str = "") -> Iterator[str]:
    """As many messages as the documents need, each of a size that suits the encoder."""
    batch: list[str] = []
    batch_bytes = 0
    for document in documents:
        entry = json.dumps(document_as_json(document), ensure_ascii=False)
        entry_bytes = len(entry.encode())
        if batch and (len(batch) == _TARGET_DOCUMENTS or batch_bytes + entry_bytes > _TARGET_BYTES):
            yield _message(batch, accepted_at, traceparent)
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry_bytes
    if batch:
        yield _message(batch, accepted_at, traceparent)


def decode(text: str) -> IngestMessage:
    """A message and what is wrong in it.

    Raises:
        MalformedMessage: it cannot be read at all.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"the message is not JSON: {error}") from error
    if isinstance(content, dict):
        content = {"traceparent": "", **content}
    _check_fields(content, _FIELDS, "the message")
    if content["schema_version"] != SCHEMA_VERSION:
        found = content["schema_version"]
        raise MalformedMessage(f"schema_version is {found!r}; only {SCHEMA_VERSION} can be read")
    accepted_at = content["accepted_at"]
    if not _is_number(accepted_at) or not math.isfinite(accepted_at):
        raise MalformedMessage(f"accepted_at is {accepted_at!r}; it must be a number of seconds")
    if not isinstance(content["traceparent"], str):
        raise MalformedMessage("traceparent is no string")
    entries = content["documents"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_DOCUMENTS:
        raise MalformedMessage(f"documents must be a list of 1 to {MAX_DOCUMENTS}")
    read = [_read_entry(entry, accepted_at) for entry in entries]
    return IngestMessage(
        accepted_at=float(accepted_at),
        documents=tuple(entry for entry in read if isinstance(entry, Document)),
        refused=tuple(entry for entry in read if isinstance(entry, RefusedEntry)),
        traceparent=content["traceparent"],
    )


def document_as_json(document: Document) -> dict[str, Any]:
    """A document as it is in messages and dead letters."""
    return {
        "id": document.id,
        "text": document.text,
        "attributes": dict(document.attributes),
        "version": document.version,
    }


def document_from_json(content: object) -> Document:
    """The document of such an object; its values are not checked.

    Raises:
        MalformedMessage: a field is missing, not known or of another type.
    """
    if isinstance(content, dict):
        content = {"attributes": {}, **content}
    fields = _check_fields(content, _DOCUMENT_FIELDS, "a document")
    for name, kind in (("id", str), ("text", str), ("attributes", dict), ("version", int)):
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            raise MalformedMessage(f"{name} is {fields[name]!r:.80}; it must be {_JSON_NAMES[kind]}")
    return Document(**fields)


_JSON_NAMES: dict[type, str] = {str: "a string", dict: "an object", int: "a whole number"}


def _message(entries: Sequence[str], accepted_at: float, traceparent: str = "") -> str:
    fields = {"schema_version": SCHEMA_VERSION, "accepted_at": accepted_at}
    head = json.dumps({**fields, "traceparent": traceparent} if traceparent else fields)
    return f'{head[:-1]}, "documents": [{", ".join(entries)}]}}'


def _read_entry(entry: object, accepted_at: float) -> Document | RefusedEntry:
    def refused(document: Document | None, error: str) -> RefusedEntry:
        return RefusedEntry(document, _message([json.dumps(entry)], accepted_at), error)

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


def _check_fields(content: object, expected: set[str], what: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise MalformedMessage(f"{what} is no JSON object")
    if missing := expected - content.keys():
        raise MalformedMessage(f"{what} lacks {sorted(missing)}")
    if unknown := content.keys() - expected:
        raise MalformedMessage(f"{what} has unknown fields {sorted(unknown)}")
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_CONTENT_TYPE = "application/json"
_CONTENT_ENCODING = "utf-8"
_BODY_ENCODING = "base64"


def pack(argument: str) -> str:
    """The message for a task with this argument, as it goes into the queue."""
    return json.dumps(_envelope_message(_new_body(argument), str(uuid.uuid4())))


def unpack(raw: bytes) -> dict[str, Any]:
    """The message for Celery, with a delivery tag of its own.

    Raises:
        MalformedMessage: it is no task of ours, or not one that can be read.
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
    body = _new_body(_argument(message.get("body")))
    return _envelope_message(body, task_id if isinstance(task_id, str) and task_id else str(uuid.uuid4()))


def _envelope_message(body: str, task_id: str) -> dict[str, Any]:
    return {
        "body": body,
        "content-type": _CONTENT_TYPE,
        "content-encoding": _CONTENT_ENCODING,
        "headers": {"lang": "py", "task": TASK_NAME, "id": task_id},
        "properties": {
            "body_encoding": _BODY_ENCODING,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
        },
    }


def _argument(encoded_body: object) -> str:
    if not isinstance(encoded_body, str):
        raise MalformedMessage("body is no string")
    try:
        body = base64.b64decode(encoded_body, validate=True)
    except ValueError as error:
        raise MalformedMessage(f"body is not base64: {error}") from error
    match _json(body, "body"):
        case [[str() as argument], dict() as kwargs, _] if not kwargs:
            return argument
    raise MalformedMessage("the task must have exactly one argument, a string")


def _new_body(argument: str) -> str:
    return base64.b64encode(json.dumps([[argument], {}, {}]).encode()).decode()


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{what} is no JSON object")
    return value


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what} is not JSON: {error}") from error
