"""Documents: identity, version, content hash, and the limits that make one valid."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textmatch.errors import InvalidInput, Violation, raise_violations
from textmatch.v1 import error_reason_pb2

MAX_ID_BYTES = 512
# Of a document. Longer texts than MAX_TEXT_BYTES are never sent to a model at once.
MAX_DOCUMENT_TEXT_BYTES = 4 * 1024**2
# Of a query, or of a text to encode or to score.
MAX_TEXT_BYTES = 32 * 1024
MAX_ATTRIBUTES_BYTES = 16 * 1024
MAX_ATTRIBUTES_DEPTH = 8
# Qdrant and protobuf's Struct store numbers as IEEE doubles, which represent every integer up to this one.
MAX_EXACT_WHOLE_NUMBER = 2**53 - 1
MAX_VERSION = MAX_EXACT_WHOLE_NUMBER

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# The version of a UUID: its 13th digit, in text after two hyphens.
_VERSION_PLACE = 14
_PASSAGE_DIGIT = "8"
_POINT_NAMESPACE = uuid.UUID("6b0f8a52-2b57-5d0f-9f43-6d0f4a1c7e11")


@dataclass(frozen=True)
class Passage:
    """A part of the text of a document that is longer than the model reads: `text[start:end]`.

    Passages are numbered from 0 in the order of the text. They may overlap.
    """

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text of the corpus. `version` 0 means unset: the matcher sets the time of acceptance.

    `accepted_us` is the time at which the matcher accepted it, in microseconds since 1970 by the clock in
    Redis; 0 before. It says whether a delete came later, and is not part of the document's value.

    `passage` says which part of the document `text` is, if a search has found a part of it; None: all of it.

    `deleted` makes it a delete of the document up to `version`, or of all that was accepted before it if the
    version is unset. A delete has no text and no attributes.

    `expected_version` is that which the document must have when the matcher accepts this one; 0: there must
    be none; None: any.
    """

    id: str
    text: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    accepted_us: int = field(default=0, compare=False, repr=False)
    passage: Passage | None = field(default=None, compare=False, repr=False)
    deleted: bool = False
    expected_version: int | None = None

    @classmethod
    def deletion(cls, document_id: str, version: int = 0, *, expected_version: int | None = None) -> Document:
        """A delete, as an item among documents to ingest."""
        return cls(document_id, "", version=version, deleted=True, expected_version=expected_version)


def point_id(document_id: str) -> str:
    """The id of a document's point in Qdrant (UUIDv5, RFC 9562). It is stable, so a retry overwrites."""
    return str(uuid.uuid5(_POINT_NAMESPACE, document_id))


def passage_point_id(document_id: str, version: int, content_hash: str, number: int) -> str:
    """The id of the point of a further passage (UUIDv8, RFC 9562), 1 or higher.

    It has the first 60 bits of the document's point, and a hash of version, content and number: a write of
    another version never overwrites it.
    """
    revision = f"{version} {content_hash} {number}"
    own = hashlib.blake2b(revision.encode(), digest_size=8).hexdigest()
    document_point = point_id(document_id).replace("-", "")
    # The variant of a UUID is in the first digit of its second half.
    variant = "89ab"[int(own[0], 16) % 4]
    return str(uuid.UUID(f"{document_point[:12]}{_PASSAGE_DIGIT}{document_point[13:16]}{variant}{own[1:]}"))


def is_passage_point(point: str) -> bool:
    """Whether it is the point of a further passage, and not that of a document."""
    return point[_VERSION_PLACE : _VERSION_PLACE + 1] == _PASSAGE_DIGIT


def document_key(point: str) -> str:
    """The same for the points of all passages of a document, and for no others."""
    return point[:_VERSION_PLACE] + point[_VERSION_PLACE + 1 : 18]


def text_hash(text: str) -> str:
    """128 bits in hex. A text is encoded again only if its hash changed."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def content_hash(document: Document) -> str:
    """128 bits in hex over text and attributes, without the version."""
    content = json.dumps([document.text, document.attributes], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def text_violation(field_name: str, text: str, max_bytes: int = MAX_TEXT_BYTES) -> Violation | None:
    """What is wrong with a text; None if it is valid."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        return Violation(
            field_name,
            error_reason_pb2.ERROR_REASON_TEXT_INVALID,
            f"is not Unicode text: lone surrogate at character {error.start}",
        )
    if size_bytes > max_bytes:
        return Violation(
            field_name,
            error_reason_pb2.ERROR_REASON_TEXT_TOO_LARGE,
            f"has {size_bytes:,} bytes of UTF-8; the limit is {max_bytes:,}",
        )
    if not text.strip():
        return Violation(field_name, error_reason_pb2.ERROR_REASON_TEXT_EMPTY, "is empty")
    if (position := text.find("\0")) >= 0:
        return Violation(
            field_name,
            error_reason_pb2.ERROR_REASON_TEXT_INVALID,
            f"contains a NUL character at character {position}",
        )
    return None


def id_violation(field_name: str, document_id: str) -> Violation | None:
    """What is wrong with a document id; None if it is valid."""
    problem = text_violation(field_name, document_id, MAX_ID_BYTES)
    return None if problem is None else Violation.of_field(field_name, problem.description)


def version_violation(field_name: str, version: int) -> Violation | None:
    """What is wrong with a version that a client chose; None if it is valid."""
    if 1 <= version <= MAX_VERSION:
        return None
    return Violation.of_field(field_name, f"is {version}; it must be 1 to {MAX_VERSION}")


def request_id_violation(request_id: str) -> Violation | None:
    """What is wrong with the id of a request; None if it is empty or a UUID."""
    if not request_id or _UUID.fullmatch(request_id):
        return None
    return Violation.of_field("request_id", "is not a UUID")


def attributes_violation(field_name: str, attributes: Mapping[str, Any]) -> Violation | None:
    """What is wrong with attributes: too large, too deep or not JSON; None if they are valid."""
    values = _nested_values(attributes)
    if values is None:
        return Violation.of_field(field_name, f"are nested deeper than {MAX_ATTRIBUTES_DEPTH} levels")
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_EXACT_WHOLE_NUMBER:
            return Violation.of_field(field_name, f"contain {value}; integers are exact only up to 2^53-1")
    try:
        size_bytes = len(json.dumps(attributes, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        return Violation.of_field(field_name, "contain a lone surrogate, which is not Unicode text")
    except (TypeError, ValueError) as error:
        return Violation.of_field(field_name, f"are not JSON: {error}")
    if size_bytes > MAX_ATTRIBUTES_BYTES:
        return Violation.of_field(
            field_name, f"have {size_bytes:,} bytes as JSON; the limit is {MAX_ATTRIBUTES_BYTES:,}"
        )
    return None


def document_violations(document: Document, prefix: str = "") -> list[Violation]:
    """Everything that is wrong with a document. `prefix` precedes field names ("documents[3].")."""
    checks = [
        id_violation(f"{prefix}id", document.id),
        version_violation(f"{prefix}version", document.version) if document.version else None,
        _expectation_violation(f"{prefix}expected_version", document),
    ]
    if document.deleted:
        checks += [
            Violation.of_field(prefix + name, "is given, but the document is deleted")
            for name, value in (("text", document.text), ("attributes", document.attributes))
            if value
        ]
    else:
        checks += [
            text_violation(f"{prefix}text", document.text, MAX_DOCUMENT_TEXT_BYTES),
            attributes_violation(f"{prefix}attributes", document.attributes),
        ]
    return [violation for violation in checks if violation is not None]


def _expectation_violation(field_name: str, document: Document) -> Violation | None:
    expected = document.expected_version
    if expected is None:
        return None
    if not 0 <= expected <= MAX_VERSION:
        return Violation.of_field(field_name, f"is {expected}; it must be 0 to {MAX_VERSION}")
    if document.version and document.version <= expected - document.deleted:
        return Violation.of_field(
            field_name, f"is {expected}, so that the version {document.version} never counts"
        )
    return None


def check_texts(field_name: str, texts: Sequence[str], max_texts: int) -> None:
    """Check a batch of texts.

    Raises:
        InvalidInput: naming every bad text by its position, or the limit on the number of texts.
    """
    check_item_count(field_name, len(texts), max_texts)
    raise_violations(text_violation(f"{field_name}[{position}]", text) for position, text in enumerate(texts))


def check_item_count(field_name: str, count: int, max_count: int) -> None:
    """Check that there is at least one item and no more than the limit.

    Raises:
        InvalidInput: naming the field, the count and the limit.
    """
    if count == 0:
        raise InvalidInput.of_field(field_name, "is empty; at least one item is needed")
    if count > max_count:
        too_many = error_reason_pb2.ERROR_REASON_TOO_MANY_ITEMS
        raise InvalidInput(
            [Violation(field_name, too_many, f"has {count:,} items; the limit is {max_count:,}")]
        )


def _nested_values(attributes: Any) -> list[Any] | None:
    """The values of all levels; None if there are more levels than the limit. Not recursive."""
    values: list[Any] = []
    level: list[Any] = [attributes]
    for _ in range(MAX_ATTRIBUTES_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return values
        values += level
    return None


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return []
