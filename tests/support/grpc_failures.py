"""What a failed call says."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass
class Failure:
    """The parts of a google.rpc.Status that tests look at; `fields` is (field, reason) of each violation."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    reason: str = ""
    domain: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    retry_seconds: float | None = None
    resource: tuple[str, str] | None = None

    def read(self, status: status_pb2.Status) -> None:
        """Take all from a status."""
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self.message = status.message
        for detail in status.details:
            self._read_detail(detail)

    def _read_detail(self, detail: Any) -> None:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        bad_request, resource = error_details_pb2.BadRequest(), error_details_pb2.ResourceInfo()
        if detail.Unpack(info):
            self.reason, self.domain = info.reason, info.domain
        elif detail.Unpack(retry):
            self.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(bad_request):
            self.fields = [(violation.field, violation.reason) for violation in bad_request.field_violations]
            self.descriptions = [violation.description for violation in bad_request.field_violations]
        elif detail.Unpack(resource):
            self.resource = (resource.resource_type, resource.resource_name)


async def failure_of(call: Awaitable[object]) -> Failure:
    """The failure of a call that must fail."""
    failure = Failure()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    if status is None:
        failure.code, failure.message = caught.value.code(), caught.value.details() or ""
    else:
        failure.read(status)
    return failure
