from __future__ import annotations

from urllib.parse import quote

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from textmatch import errors
from textmatch.errors import InvalidInput, TextMatchError, Violation, reason_name
from textmatch.runtime.grpc_errors import from_status, status_code, to_status
from textmatch.v1 import error_reason_pb2

EXAMPLES: list[tuple[TextMatchError, grpc.StatusCode, str]] = [
    (InvalidInput.of_field("top_k", "is 0"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    (errors.DocumentNotFound("a"), grpc.StatusCode.NOT_FOUND, "DOCUMENT_NOT_FOUND"),
    (errors.ModelNotFound("m", "no model m"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    (errors.CollectionNotFound("c"), grpc.StatusCode.NOT_FOUND, "COLLECTION_NOT_FOUND"),
    (errors.CollectionExists("x"), grpc.StatusCode.ALREADY_EXISTS, "COLLECTION_EXISTS"),
    (errors.CollectionNotOwned.of("c"), grpc.StatusCode.FAILED_PRECONDITION, "COLLECTION_NOT_OWNED"),
    (errors.DocumentDeleted.of(5), grpc.StatusCode.FAILED_PRECONDITION, "DOCUMENT_DELETED"),
    (errors.VersionsExhausted.of("a"), grpc.StatusCode.FAILED_PRECONDITION, "VERSIONS_EXHAUSTED"),
    (errors.VersionMismatch.of(5), grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH"),
    (errors.CollectionDenied("x"), grpc.StatusCode.PERMISSION_DENIED, "COLLECTION_DENIED"),
    (errors.Overloaded("x", retry_delay_seconds=1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (errors.DeadlineTooShort("x"), grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_TOO_SHORT"),
    (errors.DeadlinePassed("x"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    (errors.NotReady("x", retry_delay_seconds=0.25), grpc.StatusCode.UNAVAILABLE, "NOT_READY"),
    (errors.DependencyUnavailable("x"), grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
    (errors.StoreAccessDenied("x"), grpc.StatusCode.UNAVAILABLE, "STORE_ACCESS_DENIED"),
    (errors.StoreFull("x", retry_delay_seconds=5.0), grpc.StatusCode.UNAVAILABLE, "STORE_FULL"),
    (errors.StoreMisconfigured("x"), grpc.StatusCode.UNAVAILABLE, "STORE_MISCONFIGURED"),
    (errors.AnswerIncomplete("RERANK_LATE"), grpc.StatusCode.UNAVAILABLE, "ANSWER_INCOMPLETE"),
    (errors.CollectionsDiffer("x"), grpc.StatusCode.FAILED_PRECONDITION, "COLLECTIONS_DIFFER"),
    (errors.ModelMismatch("old", "new"), grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH"),
    (errors.LexicalIndexMissing("x"), grpc.StatusCode.FAILED_PRECONDITION, "LEXICAL_INDEX_MISSING"),
    (errors.ApiKeyMissing("x"), grpc.StatusCode.UNAUTHENTICATED, "API_KEY_MISSING"),
    (errors.ApiKeyInvalid("x"), grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID"),
    (errors.PermissionDenied("x"), grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
    (errors.InternalError("x"), grpc.StatusCode.INTERNAL, "INTERNAL"),
]


def detail(status: status_pb2.Status, kind: type) -> object:
    [found] = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    message = kind()
    found.Unpack(message)
    return message


@pytest.mark.parametrize(("error", "code", "reason"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_every_error_has_its_code_and_one_error_info(
    error: TextMatchError, code: grpc.StatusCode, reason: str
):
    status = to_status(error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert status_code(status) is code
    assert (info.reason, info.domain) == (reason, "textmatch.dev")


@pytest.mark.parametrize(("error", "code", "reason"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_every_error_survives_the_wire(error: TextMatchError, code: grpc.StatusCode, reason: str):
    returned = from_status(to_status(error))
    assert type(returned) is type(error)
    assert str(returned) == str(error)
    assert returned.retry_delay_seconds == error.retry_delay_seconds


def test_every_error_class_has_an_example():
    def leaves(kind: type[TextMatchError]) -> set[type[TextMatchError]]:
        below = [child for child in kind.__subclasses__() if child.__module__ == "textmatch.errors"]
        return set().union(*map(leaves, below)) if below else {kind}

    # It stands for itself too.
    assert leaves(TextMatchError) | {errors.DependencyUnavailable} == {
        type(error) for error, _, _ in EXAMPLES
    }


def test_bad_items_keep_their_names_and_reasons():
    violation = Violation("texts[3]", error_reason_pb2.ERROR_REASON_TEXT_EMPTY, "is empty")
    status = to_status(InvalidInput([violation]))
    bad_request = detail(status, error_details_pb2.BadRequest)
    assert bad_request.field_violations[0].reason == "TEXT_EMPTY"
    returned = from_status(status)
    assert isinstance(returned, InvalidInput)
    assert returned.violations == [violation]


def test_a_missing_resource_is_named():
    resource = detail(to_status(errors.DocumentNotFound("a.b")), error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("document", "a.b")


def test_a_foreign_status_keeps_its_meaning_by_code():
    for code, expected in (
        (code_pb2.UNAVAILABLE, errors.DependencyUnavailable),
        (code_pb2.RESOURCE_EXHAUSTED, errors.Overloaded),
        (code_pb2.INVALID_ARGUMENT, InvalidInput),
        (code_pb2.UNIMPLEMENTED, errors.InternalError),
    ):
        returned = from_status(status_pb2.Status(code=code, message="said by a proxy"))
        assert type(returned) is expected
        assert "said by a proxy" in str(returned)


def test_reasons_on_the_wire_have_no_prefix():
    assert reason_name(error_reason_pb2.ERROR_REASON_OVERLOADED) == "OVERLOADED"


@pytest.mark.parametrize("letter", ["a", "猫", "\ud800"])
def test_whatever_is_named_in_an_error_it_fits_into_what_clients_accept(letter: str):
    long_name = letter * 5_000
    violations = [
        Violation(f"texts[{number}]", error_reason_pb2.ERROR_REASON_TEXT_INVALID, f"is {long_name}")
        for number in range(1_000)
    ]
    for error in (errors.DocumentNotFound(long_name), InvalidInput(violations), errors.NotReady(long_name)):
        status = to_status(error)
        on_the_wire = len(quote(status.message)) + len(status.SerializeToString()) * 4 // 3
        assert on_the_wire < 8_000
        assert type(from_status(status)) is type(error)


def test_of_very_many_bad_items_the_first_are_named():
    violations = [
        Violation(f"texts[{number}]", error_reason_pb2.ERROR_REASON_TEXT_EMPTY, "is empty")
        for number in range(1_000)
    ]
    returned = from_status(to_status(InvalidInput(violations)))
    assert isinstance(returned, InvalidInput)
    assert len(returned.violations) > 50
    assert returned.violations == violations[: len(returned.violations)]
    assert "and 995 more" in to_status(InvalidInput(violations)).message
