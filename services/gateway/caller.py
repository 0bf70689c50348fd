"""Who calls: the key, the time limit and the id of a request, which go on to the servers.

Each route takes a `Caller` as a parameter:

    @router.get("/v1/models")
    async def models(caller: FromRequest) -> ModelList:
        return to_list(await caller.client.models(timeout_seconds=caller.timeout_seconds))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict

from textmatch.client import AsyncTextMatchClient
from textmatch.errors import ApiKeyInvalid, InvalidInput
from textmatch.runtime import logs

_bearer = HTTPBearer(auto_error=False, description="The API key, if the servers require one.")
# What gRPC accepts in metadata, without spaces.
_KEY = re.compile(r"[!-~]{1,1024}")


class StrictBody(BaseModel):
    """A body of a request. Unknown members and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Gateway:
    """What all routes use.

    Args:
        client: without a key: the gateway has none that it could lend.
        max_timeout_seconds: the longest time limit that a caller may ask for.
        aliases: other names of models; "" is the default model.
    """

    client: AsyncTextMatchClient
    max_timeout_seconds: float = 300.0
    aliases: Mapping[str, str] = field(default_factory=dict)

    def model(self, name: str | None) -> str:
        """The name of a model for the encoder; "" for the default one."""
        return self.aliases.get(name or "", name or "")


@dataclass(frozen=True)
class Caller:
    """The caller of one request.

    Args:
        client: sends the caller's key.
        timeout_seconds: what the caller asked for; None: nothing.
    """

    gateway: Gateway
    client: AsyncTextMatchClient
    timeout_seconds: float | None

    def collection(self, name: str) -> AsyncTextMatchClient:
        """A client for one collection."""
        return self.client.using(collection=name)


async def _caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    request_timeout: Annotated[
        float | None, Header(gt=0, allow_inf_nan=False, description="Time limit in seconds.")
    ] = None,
) -> Caller:
    gateway: Gateway = request.app.state.gateway
    key = credentials.credentials if credentials else ""
    if key and not _KEY.fullmatch(key):
        raise ApiKeyInvalid("the API key is not valid")
    limit = gateway.max_timeout_seconds
    if request_timeout is not None and request_timeout > limit:
        raise InvalidInput.of_field(
            "request-timeout", f"is {request_timeout:g}; the limit is {limit:g} seconds"
        )
    client = gateway.client.using(api_key=key, request_id=logs.request_id.get())
    return Caller(gateway, client, request_timeout)


FromRequest = Annotated[Caller, Depends(_caller)]
