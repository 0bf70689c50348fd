"""Errors to and from google.rpc.Status with ErrorInfo and details (AIP-193)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from textmatch import errors
from textmatch.errors import ERROR_DOMAIN, InvalidInput, NotFound, TextMatchError, Violation, reason_name
from textmatch.v1 import error_reason_pb2

if TYPE_CHECKING:
    from textmatch.errors import Reason

_CLASS_OF_REASON = {
    error_class.reason: error_class
    for error_class in (
        errors.Overloaded,
        errors.DeadlineTooShort,
        errors.DeadlinePassed,
        errors.NotReady,
        errors.DependencyUnavailable,
        errors.StoreAccessDenied,
        errors.StoreFull,
        errors.StoreMisconfigured,
        errors.LexicalIndexMissing,
        errors.DocumentDeleted,
        errors.VersionsExhausted,
        errors.VersionMismatch,
        errors.ApiKeyMissing,
        errors.ApiKeyInvalid,
        errors.PermissionDenied,
        errors.CollectionExists,
        errors.CollectionNotOwned,
        errors.CollectionsDiffer,
        errors.CollectionDenied,
        errors.InternalError,
    )
}
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
DETAILS_METADATA_KEY = "grpc-status-details-bin"
# gRPC clients drop trailers above 8 KiB and report RESOURCE_EXHAUSTED instead. A non-ASCII byte takes three
# bytes in trailers, and the text is in them twice: in the message and in the details.
_MAX_MESSAGE_BYTES = 700
_MAX_STATUS_BYTES = 4_000


def to_status(error: TextMatchError) -> status_pb2.Status:
    """The error as a status. If there are very many bad items, only the first ones are named."""
    status = status_pb2.Status(code=error.code, message=_cut(str(error)))
    info = error_details_pb2.ErrorInfo(
        reason=reason_name(error.reason), domain=ERROR_DOMAIN, metadata=error.metadata
    )
    _add_detail(status, info)
    if error.retry_delay_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_delay_seconds * 1e9))
        _add_detail(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidInput):
        _add_detail(status, _bad_request(error, _MAX_STATUS_BYTES - status.ByteSize()))
    if isinstance(error, NotFound):
        resource = error_details_pb2.ResourceInfo(
            resource_type=error.resource_type,
            resource_name=_cut(error.resource_name),
            description=_cut(str(error)),
        )
        _add_detail(status, resource)
    return status


def from_status(status: status_pb2.Status) -> TextMatchError:
    """The error that a status stands for. A status without our reason is translated by its code."""
    info, retry, bad_request, resource = _details(status)
    reason = _reason_value(info.reason)
    delay = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    if reason == error_reason_pb2.ERROR_REASON_MODEL_MISMATCH:
        return errors.ModelMismatch(info.metadata["index_model_id"], info.metadata["encoder_model_id"])
    if reason == error_reason_pb2.ERROR_REASON_ANSWER_INCOMPLETE:
        return errors.AnswerIncomplete(info.metadata["degraded"])
    if bad_request.field_violations:
        return InvalidInput([_from_proto(violation) for violation in bad_request.field_violations])
    if reason == error_reason_pb2.ERROR_REASON_DOCUMENT_NOT_FOUND:
        return errors.DocumentNotFound(resource.resource_name)
    if reason == error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND:
        return errors.ModelNotFound(resource.resource_name, status.message)
    if reason == error_reason_pb2.ERROR_REASON_COLLECTION_NOT_FOUND:
        return errors.CollectionNotFound(resource.resource_name)
    error_class = _CLASS_OF_REASON.get(reason) or _class_of_code(status.code)
    if error_class is InvalidInput:
        return InvalidInput.of_field("request", status.message)
    return error_class(status.message, retry_delay_seconds=delay)


def from_rpc_error(error: grpc.RpcError) -> TextMatchError:
    """The error of a failed call, with the details that the server sent."""
    code: grpc.StatusCode = error.code()
    trailers: dict[str, bytes] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    if details := trailers.get(DETAILS_METADATA_KEY):
        return from_status(status_pb2.Status.FromString(details))
    return from_status(status_pb2.Status(code=code.value[0], message=error.details() or code.name))


def status_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The gRPC code of a status."""
    return _STATUS_CODES[status.code]


def trailing_metadata(status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """The metadata that carries the details of a status."""
    metadata: tuple[tuple[str, str | bytes], ...] = rpc_status.to_status(status).trailing_metadata
    return metadata


def _class_of_code(code: int) -> type[TextMatchError]:
    match code:
        case code_pb2.INVALID_ARGUMENT | code_pb2.OUT_OF_RANGE:
            return InvalidInput
        case code_pb2.UNAVAILABLE | code_pb2.CANCELLED | code_pb2.ABORTED:
            return errors.DependencyUnavailable
        case code_pb2.RESOURCE_EXHAUSTED:
            return errors.Overloaded
        case code_pb2.DEADLINE_EXCEEDED:
            return errors.DeadlinePassed
        case code_pb2.UNAUTHENTICATED:
            return errors.Unauthenticated
        case code_pb2.PERMISSION_DENIED:
            return errors.PermissionDenied
    return errors.InternalError


def _add_detail(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _bad_request(error: InvalidInput, max_bytes: int) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in map(_to_proto, error.violations):
        if bad_request.ByteSize() + violation.ByteSize() > max_bytes:
            break
        bad_request.field_violations.append(violation)
    return bad_request


def _cut(text: str) -> str:
    if len(encoded := text.encode(errors="replace")) <= _MAX_MESSAGE_BYTES:
        return text
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "…"


def _details(
    status: status_pb2.Status,
) -> tuple[
    error_details_pb2.ErrorInfo,
    error_details_pb2.RetryInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
]:
    found = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.ResourceInfo(),
    )
    for detail in status.details:
        for wanted in found:
            if detail.Is(wanted.DESCRIPTOR):
                detail.Unpack(wanted)
    return found


def _reason_value(name: str) -> Reason:
    full_name = f"ERROR_REASON_{name}"
    if full_name in error_reason_pb2.ErrorReason.keys():  # noqa: SIM118 -- an enum wrapper has no __contains__
        return error_reason_pb2.ErrorReason.Value(full_name)
    return error_reason_pb2.ERROR_REASON_UNSPECIFIED


def _to_proto(violation: Violation) -> error_details_pb2.BadRequest.FieldViolation:
    return error_details_pb2.BadRequest.FieldViolation(
        field=_cut(violation.field),
        description=_cut(violation.description),
        reason=reason_name(violation.reason),
    )


def _from_proto(violation: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    return Violation(violation.field, _reason_value(violation.reason), violation.description)
