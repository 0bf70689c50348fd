"""All errors that a caller can get, with their gRPC codes and reasons.

    TextMatchError
    ├── InvalidInput             INVALID_ARGUMENT     names every bad item
    ├── NotFound                 NOT_FOUND            a document, a model or a collection
    ├── CollectionExists         ALREADY_EXISTS       with other settings
    ├── Overloaded               RESOURCE_EXHAUSTED   retry after `retry_delay_seconds`
    ├── DeadlineTooShort         RESOURCE_EXHAUSTED   the queued work takes longer than the deadline
    ├── DeadlinePassed           DEADLINE_EXCEEDED
    ├── NotReady                 UNAVAILABLE          loading or draining
    ├── DependencyUnavailable    UNAVAILABLE          encoder, Qdrant or Redis does not answer
    │   └── StoreRefuses         UNAVAILABLE          Qdrant or Redis answers, and only an operator can help:
    │       ├── StoreAccessDenied                     the store refuses the key or password of textmatch
    │       ├── StoreFull                             its disk or a quota is used up
    │       └── StoreMisconfigured                    its settings forbid the request
    ├── AnswerIncomplete         UNAVAILABLE          a complete answer was required
    ├── ModelMismatch            FAILED_PRECONDITION  the index was built with another model
    ├── LexicalIndexMissing      FAILED_PRECONDITION  the collection was made without BM25
    ├── CollectionNotOwned       FAILED_PRECONDITION  another installation made the collection
    ├── DocumentDeleted          FAILED_PRECONDITION  a delete covers this version of the document
    ├── VersionsExhausted        FAILED_PRECONDITION  the document has the highest possible version
    ├── VersionMismatch          FAILED_PRECONDITION  the document does not have the expected version
    ├── CollectionsDiffer        FAILED_PRECONDITION  different bi-encoders built them
    ├── Unauthenticated          UNAUTHENTICATED      the API key is missing or not valid
    ├── PermissionDenied         PERMISSION_DENIED
    ├── CollectionDenied         PERMISSION_DENIED    the API key is limited to other collections
    └── InternalError            INTERNAL             a bug; the details are in the server's log

Codes are `google.rpc.Code`: modules that do not use gRPC raise these errors too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from google.rpc import code_pb2

from textmatch.v1 import error_reason_pb2

if TYPE_CHECKING:
    Reason: TypeAlias = error_reason_pb2.ErrorReason.ValueType  # exists in the stubs only


ERROR_DOMAIN = "textmatch.dev"
_REASON_PREFIX = "ERROR_REASON_"


def reason_name(reason: Reason) -> str:
    """The name on the wire: `ERROR_REASON_OVERLOADED` -> `OVERLOADED`."""
    return error_reason_pb2.ErrorReason.Name(reason).removeprefix(_REASON_PREFIX)


@dataclass(frozen=True)
class Violation:
    """One bad item of a request: a `field` such as "texts[3]", and one of the TEXT_* or FIELD_* reasons."""

    field: str
    reason: Reason
    description: str

    @classmethod
    def of_field(cls, field: str, description: str) -> Violation:
        """A field with a bad value."""
        return cls(field, error_reason_pb2.ERROR_REASON_FIELD_INVALID, description)

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class TextMatchError(Exception):
    """Base of all errors that are meant for the caller. The message is safe to show."""

    code: ClassVar[int] = code_pb2.INTERNAL
    reason: ClassVar[Reason] = error_reason_pb2.ERROR_REASON_INTERNAL
    # Whether the same call may succeed later.
    is_transient: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_delay_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_delay_seconds = retry_delay_seconds

    @property
    def metadata(self) -> dict[str, str]:
        """The content of ErrorInfo.metadata."""
        return {}


class InvalidInput(TextMatchError):
    """The request is invalid. `violations` names every bad item."""

    code = code_pb2.INVALID_ARGUMENT
    reason = error_reason_pb2.ERROR_REASON_INVALID_INPUT
    _SHOWN_VIOLATIONS = 5

    def __init__(self, violations: Sequence[Violation]) -> None:
        shown = "; ".join(str(violation) for violation in violations[: self._SHOWN_VIOLATIONS])
        more = len(violations) - self._SHOWN_VIOLATIONS
        super().__init__(f"{shown}; and {more} more" if more > 0 else shown)
        self.violations = list(violations)

    @classmethod
    def of_field(cls, field: str, description: str) -> InvalidInput:
        """A single field with a bad value."""
        return cls([Violation.of_field(field, description)])


def raise_violations(violations: Iterable[Violation | None]) -> None:
    """Raise InvalidInput if there are any; None stands for an item without one."""
    if found := [violation for violation in violations if violation is not None]:
        raise InvalidInput(found)


class NotFound(TextMatchError):
    """The document, model or collection does not exist."""

    code = code_pb2.NOT_FOUND

    def __init__(self, resource_type: str, resource_name: str, message: str | None = None) -> None:
        super().__init__(message or f'no {resource_type} "{resource_name}"')
        self.resource_type = resource_type
        self.resource_name = resource_name


class DocumentNotFound(NotFound):
    reason = error_reason_pb2.ERROR_REASON_DOCUMENT_NOT_FOUND

    def __init__(self, document_id: str) -> None:
        super().__init__("document", document_id)


class ModelNotFound(NotFound):
    reason = error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND

    def __init__(self, name: str, message: str | None = None) -> None:
        super().__init__("model", name, message)


class CollectionNotFound(NotFound):
    reason = error_reason_pb2.ERROR_REASON_COLLECTION_NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__("collection", name)


class CollectionExists(TextMatchError):
    """There is a collection of this name with other settings."""

    code = code_pb2.ALREADY_EXISTS
    reason = error_reason_pb2.ERROR_REASON_COLLECTION_EXISTS


class Overloaded(TextMatchError):
    """Too much work is queued; retry after `retry_delay_seconds`."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = error_reason_pb2.ERROR_REASON_OVERLOADED
    is_transient = True


class DeadlineTooShort(TextMatchError):
    """The queued work takes longer than the caller's deadline allows."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = error_reason_pb2.ERROR_REASON_DEADLINE_TOO_SHORT
    is_transient = True


class DeadlinePassed(TextMatchError):
    """The deadline passed while the call was running."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED
    is_transient = True


class NotReady(TextMatchError):
    """A model is still loading, or the server is draining."""

    code = code_pb2.UNAVAILABLE
    reason = error_reason_pb2.ERROR_REASON_NOT_READY
    is_transient = True


class DependencyUnavailable(TextMatchError):
    """The encoder, Qdrant or Redis does not answer."""

    code = code_pb2.UNAVAILABLE
    reason = error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    is_transient = True


class StoreRefuses(DependencyUnavailable):
    """A store answers, but refuses requests until an operator acts. No caller and no document is at fault."""


class StoreAccessDenied(StoreRefuses):
    """Qdrant or Redis refuses the credentials with which textmatch connects."""

    reason = error_reason_pb2.ERROR_REASON_STORE_ACCESS_DENIED


class StoreFull(StoreRefuses):
    """The disk of Qdrant or Redis is full, or a quota is used up."""

    reason = error_reason_pb2.ERROR_REASON_STORE_FULL


class StoreMisconfigured(StoreRefuses):
    """A setting of Qdrant or Redis forbids the request, such as Qdrant's strict mode."""

    reason = error_reason_pb2.ERROR_REASON_STORE_MISCONFIGURED


class AnswerIncomplete(TextMatchError):
    """The answer would have been degraded, and the caller required a complete one."""

    code = code_pb2.UNAVAILABLE
    reason = error_reason_pb2.ERROR_REASON_ANSWER_INCOMPLETE
    is_transient = True

    def __init__(self, degraded: str) -> None:
        super().__init__(f"the answer would have been incomplete: {degraded}")
        self.degraded = degraded

    @property
    def metadata(self) -> dict[str, str]:
        return {"degraded": self.degraded}


class ModelMismatch(TextMatchError):
    """The index was built with another model than the one served."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_MODEL_MISMATCH

    def __init__(self, index_model_id: str, encoder_model_id: str) -> None:
        super().__init__(f"the index was built with {index_model_id}, the encoder serves {encoder_model_id}")
        self.index_model_id = index_model_id
        self.encoder_model_id = encoder_model_id

    @property
    def metadata(self) -> dict[str, str]:
        return {"index_model_id": self.index_model_id, "encoder_model_id": self.encoder_model_id}


class LexicalIndexMissing(TextMatchError):
    """Hybrid recall was requested, but the collection has no BM25 index."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_LEXICAL_INDEX_MISSING


class CollectionNotOwned(TextMatchError):
    """The collection of this name in Qdrant belongs to another installation."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_COLLECTION_NOT_OWNED

    @classmethod
    def of(cls, name: str) -> CollectionNotOwned:
        """The error with both ways out."""
        return cls(
            f'the collection "{name}" in Qdrant belongs to another installation; use another name, or take it'
            f" over with: textmatch collections adopt {name}"
        )


class DocumentDeleted(TextMatchError):
    """A delete covers this version of the document."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_DOCUMENT_DELETED

    @classmethod
    def of(cls, version: int) -> DocumentDeleted:
        """The error of a document with this version."""
        return cls(f"a delete covers version {version} of this document; send a higher version")


class VersionsExhausted(TextMatchError):
    """The document has the highest possible version, so no other write can replace it."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_VERSIONS_EXHAUSTED

    @classmethod
    def of(cls, document_id: str) -> VersionsExhausted:
        """The error of a document without a version."""
        return cls(f'"{document_id}" has the highest possible version; delete it, and use another id')


class VersionMismatch(TextMatchError):
    """The document does not have the expected version, or was changed at the same time."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_VERSION_MISMATCH

    @classmethod
    def of(cls, expected_version: int) -> VersionMismatch:
        """The error of a document that was expected to have this version; 0: not to exist."""
        if expected_version:
            return cls(f"the document does not have the version {expected_version} now")
        return cls("the document exists, or is created at the same time")


class CollectionsDiffer(TextMatchError):
    """Two collections cannot be compared, because different bi-encoders built them."""

    code = code_pb2.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_COLLECTIONS_DIFFER


class Unauthenticated(TextMatchError):
    """The call has no valid API key."""

    code = code_pb2.UNAUTHENTICATED
    reason = error_reason_pb2.ERROR_REASON_API_KEY_INVALID


class ApiKeyMissing(Unauthenticated):
    """The call has no API key."""

    reason = error_reason_pb2.ERROR_REASON_API_KEY_MISSING


class ApiKeyInvalid(Unauthenticated):
    """The call's API key is not valid, or no longer valid."""


class PermissionDenied(TextMatchError):
    """The API key does not allow this call."""

    code = code_pb2.PERMISSION_DENIED
    reason = error_reason_pb2.ERROR_REASON_SCOPE_MISSING


class CollectionDenied(TextMatchError):
    """The API key is limited to other collections."""

    code = code_pb2.PERMISSION_DENIED
    reason = error_reason_pb2.ERROR_REASON_COLLECTION_DENIED


class InternalError(TextMatchError):
    """A bug. The caller gets only a reference to the log."""
