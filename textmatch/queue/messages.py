"""The messages in the queue: Celery tasks that carry documents. producer.py writes them.

The task `textmatch.index_documents` has one positional argument, a string with this JSON object:

    {"schema_version": 2,
     "collection": "default",                           its name
     "generation": "5f3a9c1e",                          which creation of the collection is meant
     "accepted_at": 1700000000.25,                      seconds since 1970
     "documents": [{"id": "a", "text": "...", "attributes": {...}, "version": 1700000000250000},
                   {"id": "b", "deleted": true, "version": 1700000000250000}, ...],
     "traceparent": "00-..."}                           the sender's W3C trace context

`collection`, `generation`, `traceparent` and `attributes` are optional; unknown fields are refused. Without a
generation, the collection that has the name when the message is handled is meant. The argument is a string
because kombu would read some JSON objects in attributes as its own markers for dates and bytes. A message
holds 1 to 256 documents. An invalid document is refused alone, an unreadable message as a whole.

In the queue, the task is a Celery message (protocol 2):

    {"body": base64 of JSON [[argument], {}, {...}], "content-type": "application/json",
     "content-encoding": "utf-8", "headers": {"task", "id", ...}, "properties": {"body_encoding": "base64",
     ...}}

A message of the matcher has no `accepted_at` and no `version`. The script that puts it into the queue adds
them in front of the body, where it can write them without decoding the body:

    {"accepted_us": 1700000000250000, "versions": [1700000000250000, 7, 0], "body": ...}

There is one version for each document. -1 means that the document was refused: workers skip it. 0 is the
version of a delete without one: it covers what was accepted before this message.

Anyone may push into the queue. Therefore every field is checked, and the message for Celery is rebuilt
without fields that make Celery drop, delay or divert a task: expiry, countdown, callbacks, a reused delivery
tag.
"""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from textmatch.collection_config import DEFAULT_COLLECTION, name_violation
from textmatch.documents import MAX_VERSION, Document, document_violations, version_violation
from textmatch.errors import InvalidInput

TASK_NAME = "textmatch.index_documents"
SCHEMA_VERSION = 2
MAX_DOCUMENTS = 256

_FIELDS = {"schema_version", "collection", "generation", "accepted_at", "documents", "traceparent"}
_DEFAULTS = {"collection": DEFAULT_COLLECTION, "generation": "", "traceparent": ""}
_DOCUMENT_FIELDS = {"id": str, "text": str, "attributes": dict, "version": int}
_DELETION_FIELDS = {"id": str, "deleted": bool, "version": int}
# In the place of a version.
REFUSED = -1
_STAMP_FIELDS = ("accepted_us", "versions")
_MICROSECONDS = 1_000_000
# Deeper entries cannot be written as JSON again.
_MAX_DEPTH = 100
_JSON_NAMES: dict[type, str] = {str: "a string", dict: "an object", int: "a whole number", bool: "true"}
_CONTENT_TYPE = "application/json"
_CONTENT_ENCODING = "utf-8"
_BODY_ENCODING = "base64"
# By the names that kombu writes.
_DECOMPRESSORS: dict[object, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
_MAX_BODY_BYTES = 64 * 1024 * 1024


class MalformedMessage(ValueError):
    """A message, or an entry of one, does not have the form above."""


@dataclass(frozen=True)
class Stamp:
    """When the matcher accepted the documents of a message, and their versions in order."""

    accepted_us: int
    versions: tuple[int, ...]

    def to_fields(self) -> dict[str, Any]:
        """As in front of the body of a message."""
        return {"accepted_us": self.accepted_us, "versions": list(self.versions)}


def stamp_from_fields(fields: Mapping[str, Any]) -> Stamp | None:
    """The stamp of a message, or None if it has none.

    Raises:
        MalformedMessage: it does not have the form above.
    """
    if not any(name in fields for name in _STAMP_FIELDS):
        return None
    accepted_us: Any
    versions: Any
    accepted_us, versions = (fields.get(name) for name in _STAMP_FIELDS)
    is_list = isinstance(versions, list) and all(map(_is_version, versions))
    if not is_list or not _is_time(accepted_us) or not accepted_us:
        raise MalformedMessage(f"accepted_us and versions must be whole numbers up to {MAX_VERSION}")
    return Stamp(accepted_us, tuple(versions))


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_VERSION


def _is_version(value: object) -> bool:
    return value == REFUSED or _is_time(value)


@dataclass(frozen=True)
class RefusedEntry:
    """An invalid document; `document` is None if the entry does not have the form of a document.

    Args:
        raw: the argument of a task with this entry alone, or with all entries if it cannot be written alone.
        stamp: of that task.
    """

    document: Document | None
    raw: str
    error: str
    stamp: Stamp | None = None


@dataclass(frozen=True)
class Envelope:
    """What a message says about its documents.

    Attributes:
        collection: its name.
        generation: "" if the sender does not know it.
        accepted_at: seconds since 1970; None if the message is stamped.
        traceparent: "" if there is none.
    """

    collection: str
    generation: str
    accepted_at: float | None = None
    traceparent: str = ""

    def wrap(self, entries: Sequence[str]) -> str:
        """The task's argument with these documents, each in JSON."""
        fields: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "collection": self.collection}
        fields |= {"generation": self.generation} if self.generation else {}
        fields |= {"accepted_at": self.accepted_at} if self.accepted_at is not None else {}
        fields |= {"traceparent": self.traceparent} if self.traceparent else {}
        return f'{json.dumps(fields)[:-1]}, "documents": [{", ".join(entries)}]}}'


@dataclass(frozen=True)
class IngestMessage:
    """The documents of a message, and the entries that are refused."""

    envelope: Envelope
    documents: tuple[Document, ...]
    refused: tuple[RefusedEntry, ...] = ()


def decode(argument: str, stamp: Stamp | None = None) -> IngestMessage:
    """The documents in a task's argument, and the entries that are refused.

    Args:
        stamp: of the message, if the matcher sent it.

    Raises:
        MalformedMessage: the message cannot be read.
    """
    with _only_malformed():
        return _decode(argument, stamp)


@contextmanager
def _only_malformed() -> Iterator[None]:
    """Translates every error: the message is at fault, also for an unexpected exception."""
    try:
        yield
    except MalformedMessage:
        raise
    except Exception as error:
        raise MalformedMessage(f"the message cannot be read: {type(error).__name__}: {error}") from error


def _decode(argument: str, stamp: Stamp | None) -> IngestMessage:
    content = _json(argument, "the message")
    if isinstance(content, dict):
        content = {**_DEFAULTS, **content}
    _check_fields(content, _FIELDS if stamp is None else _FIELDS - {"accepted_at"}, "the message")
    if content["schema_version"] != SCHEMA_VERSION:
        raise MalformedMessage(
            f"schema_version is {content['schema_version']!r}; only {SCHEMA_VERSION} can be read"
        )
    for field in _DEFAULTS:
        if not isinstance(content[field], str):
            raise MalformedMessage(f"{field} must be a string")
    if problem := name_violation("collection", content["collection"]):
        raise MalformedMessage(str(problem))
    entries = content["documents"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_DOCUMENTS:
        raise MalformedMessage(f"documents must be a list of 1 to {MAX_DOCUMENTS}")
    names = content["collection"], content["generation"]
    if stamp is None:
        accepted_at = _seconds(content["accepted_at"])
        envelope = Envelope(*names, accepted_at, content["traceparent"])
        accepted_us = max(1, int(accepted_at * _MICROSECONDS))
        read = [_read_entry(entry, envelope, argument, accepted_us) for entry in entries]
    elif len(stamp.versions) != len(entries):
        raise MalformedMessage(f"versions has {len(stamp.versions)} items; documents has {len(entries)}")
    else:
        envelope = Envelope(*names, traceparent=content["traceparent"])
        read = [
            _read_stamped(entry, version, envelope, argument, stamp)
            for entry, version in zip(entries, stamp.versions, strict=True)
            if version != REFUSED
        ]
    return IngestMessage(
        envelope,
        documents=tuple(entry for entry in read if isinstance(entry, Document)),
        refused=tuple(entry for entry in read if isinstance(entry, RefusedEntry)),
    )


def _seconds(accepted_at: object) -> float:
    """Seconds since 1970 that are a version in microseconds."""
    is_number = isinstance(accepted_at, (int, float)) and not isinstance(accepted_at, bool)
    if not is_number or not 0 <= accepted_at <= MAX_VERSION // _MICROSECONDS:  # type: ignore[operator]
        raise MalformedMessage(
            f"accepted_at is {accepted_at!r:.80}; it must be a number of seconds since 1970"
        )
    return float(accepted_at)  # type: ignore[arg-type]


def _read_stamped(
    entry: object, version: int, envelope: Envelope, argument: str, stamp: Stamp
) -> Document | RefusedEntry:
    if isinstance(entry, dict) and "version" in entry:
        raise MalformedMessage("a document has a version, but the message has versions")
    with_version = {**entry, "version": version} if isinstance(entry, dict) else entry
    read = _read_entry(with_version, envelope, argument, stamp.accepted_us, is_stamped=True)
    if isinstance(read, Document):
        return read
    if read.raw == argument:
        return replace(read, stamp=stamp)
    alone = Stamp(stamp.accepted_us, (version,))
    return replace(read, raw=envelope.wrap([json.dumps(entry)]), stamp=alone)


def _read_entry(
    entry: object, envelope: Envelope, argument: str, accepted_us: int, *, is_stamped: bool = False
) -> Document | RefusedEntry:
    def refused(document: Document | None, error: str) -> RefusedEntry:
        return RefusedEntry(document, envelope.wrap([json.dumps(entry)]), error)

    if _depth(entry) > _MAX_DEPTH:
        return RefusedEntry(None, argument, f"a document is nested deeper than {_MAX_DEPTH} levels")
    try:
        document = replace(document_from_json(entry), accepted_us=accepted_us)
        json.dumps(entry, ensure_ascii=False).encode()
    except (MalformedMessage, UnicodeEncodeError) as error:
        return refused(None, str(error))
    violations = document_violations(document)
    is_time_enough = document.deleted and is_stamped
    if not (document.version or is_time_enough) and (
        problem := version_violation("version", document.version)
    ):
        violations.append(problem)
    if violations:
        return refused(document, str(InvalidInput(violations)))
    return document


def _depth(value: object) -> int:
    """How deep lists and objects are nested; not recursive. Stops counting above the limit."""
    level, depth = [value], 0
    while level and depth <= _MAX_DEPTH:
        level = [
            child
            for one in level
            if isinstance(one, (dict, list))
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth


def entry_of(document: Document) -> dict[str, Any]:
    """A document as it is in messages of the matcher."""
    if document.deleted:
        return {"id": document.id, "deleted": True}
    return {"id": document.id, "text": document.text, "attributes": dict(document.attributes)}


def document_as_json(document: Document) -> dict[str, Any]:
    """A document as it is in messages of other senders."""
    return {**entry_of(document), "version": document.version}


def document_from_json(content: object) -> Document:
    """The reverse of `document_as_json`; the values are not validated.

    Raises:
        MalformedMessage: a field is missing, unknown or of another type.
    """
    expected: Mapping[str, type] = _DOCUMENT_FIELDS
    if isinstance(content, dict) and "deleted" in content:
        expected = _DELETION_FIELDS
    elif isinstance(content, dict):
        content = {"attributes": {}, **content}
    fields = _check_fields(content, expected.keys(), "a document")
    for name, kind in expected.items():
        is_valid = fields[name] is True if kind is bool else _is_exactly(fields[name], kind)
        if not is_valid:
            raise MalformedMessage(f"{name} is {fields[name]!r:.80}; it must be {_JSON_NAMES[kind]}")
    return Document(**{"text": "", **fields})


def _is_exactly(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def pack(argument: str, queue: str, stamp: Stamp | None = None) -> str:
    """The Celery message for a task with this argument, as it goes into the queue of that name."""
    fields = stamp.to_fields() if stamp else {}
    return json.dumps(fields | _celery_message([argument], str(uuid.uuid4()), queue))


def unpack(raw: bytes, queue: str) -> dict[str, Any]:
    """The message for Celery, with a new delivery tag. Its task has a second argument, the stamp.

    Raises:
        MalformedMessage: it is not our task, or cannot be read.
    """
    with _only_malformed():
        return _unpack(raw, queue)


def _unpack(raw: bytes, queue: str) -> dict[str, Any]:
    message = _object(_json(raw, "the message"), "the message")
    headers = _object(message.get("headers"), "headers")
    properties = _object(message.get("properties"), "properties")
    for field, value, needed in (
        ("headers.task", headers.get("task"), TASK_NAME),
        ("properties.body_encoding", properties.get("body_encoding"), _BODY_ENCODING),
        ("content-type", message.get("content-type"), _CONTENT_TYPE),
        ("content-encoding", message.get("content-encoding"), _CONTENT_ENCODING),
    ):
        if value != needed:
            raise MalformedMessage(f"{field} is {value!r}; it must be {needed!r}")
    task_id = headers.get("id")
    argument = _argument(message.get("body"), headers.get("compression"))
    known_id = task_id if isinstance(task_id, str) and task_id else str(uuid.uuid4())
    stamp = stamp_from_fields(message)
    return _celery_message([argument, stamp.to_fields() if stamp else None], known_id, queue)


def accepted_us(raw: bytes) -> int | None:
    """When the documents of a message in the queue were accepted, in microseconds since 1970.

    None if the message says nothing that can be read.
    """
    try:
        if stamp := stamp_from_fields(_object(_json(raw, "the message"), "the message")):
            return stamp.accepted_us
        [[argument, _], _, _] = json.loads(base64.b64decode(unpack(raw, "")["body"]))
        return max(1, int(_seconds(_json(argument, "the message")["accepted_at"]) * _MICROSECONDS))
    except Exception:  # noqa: BLE001 -- unpack and decode say what is wrong with it
        return None


def _celery_message(arguments: list[Any], task_id: str, queue: str) -> dict[str, Any]:
    return {
        "body": base64.b64encode(json.dumps([arguments, {}, {}]).encode()).decode(),
        "content-type": _CONTENT_TYPE,
        "content-encoding": _CONTENT_ENCODING,
        "headers": {"lang": "py", "task": TASK_NAME, "id": task_id},
        "properties": {
            "body_encoding": _BODY_ENCODING,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _argument(encoded_body: object, compression: object) -> str:
    if not isinstance(encoded_body, str):
        raise MalformedMessage("body must be a string")
    try:
        body = base64.b64decode(encoded_body, validate=True)
    except ValueError as error:
        raise MalformedMessage(f"body is not base64: {error}") from error
    if compression is not None:
        body = _decompressed(body, compression)
    match _json(body, "body"):
        case [[str() as argument], dict() as kwargs, _] if not kwargs:
            return argument
    raise MalformedMessage("the task must have exactly one argument, a string")


def _decompressed(body: bytes, compression: object) -> bytes:
    """Not by kombu, whose functions write as many bytes as the sender wants."""
    if compression not in _DECOMPRESSORS:
        known = ", ".join(map(str, _DECOMPRESSORS))
        raise MalformedMessage(f"headers.compression is {compression!r:.80}; it must be one of {known}")
    decompressor = _DECOMPRESSORS[str(compression)]()
    try:
        content: bytes = decompressor.decompress(body, _MAX_BODY_BYTES)
    except (zlib.error, OSError, lzma.LZMAError) as error:
        raise MalformedMessage(f"body cannot be decompressed: {error}") from error
    if not decompressor.eof:
        raise MalformedMessage(f"body is cut off, or has more than {_MAX_BODY_BYTES:,} bytes")
    return content


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
