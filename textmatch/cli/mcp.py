"""`textmatch mcp`: the tools of a Model Context Protocol server, on stdin and stdout.

{"mcpServers": {"textmatch": {"command": "textmatch", "args": ["mcp", "--collection", "faq"]}}}
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import typer
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from textmatch.cli import options
from textmatch.cli.errors import message_of
from textmatch.cli.match import result_to_json
from textmatch.cli.options import find_addresses
from textmatch.client import AsyncTextMatchClient
from textmatch.errors import TextMatchError

_INSTRUCTIONS = """Finds the stored texts that mean the same as a query. A score is the probability, 0 to 1,
that a text is relevant. `where` filters by attributes: module = "os" and year > 2020."""
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_WRITES = ToolAnnotations(destructive_hint=True, idempotent_hint=True, open_world_hint=False)

ReadOnly = Annotated[bool, typer.Option("--read-only", help="Leave out the tool that stores documents.")]
Collection = Annotated[str, Field(description="Empty: the default one of this server.")]


class ToolDocument(BaseModel):
    """A document to store. The same id overwrites."""

    id: str
    text: str
    attributes: dict[str, Any] = Field(default_factory=dict)


def mcp(
    collection: options.CollectionName = "",
    read_only: ReadOnly = False,
    matcher: options.Matcher = "",
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Offer match, score, ingest and status as tools to language models, by the Model Context Protocol.

    A client starts this command and talks to it on stdin and stdout.
    """
    found = find_addresses(data_dir, matcher=matcher, encoder=encoder, collection=collection)
    client = AsyncTextMatchClient(
        found.matcher,
        found.encoder,
        api_key=found.settings.api_key,
        tls=found.tls,
        collection=found.collection,
    )
    make_server(client, is_read_only=read_only).run("stdio")


def make_server(client: AsyncTextMatchClient, *, is_read_only: bool = False) -> MCPServer[None]:
    """A server whose tools use the client, and close it at the end."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        async with client:
            yield

    server = MCPServer[None](
        "textmatch",
        instructions=_INSTRUCTIONS,
        version=version("textmatch"),
        log_level="WARNING",
        lifespan=lifespan,
    )
    tools = _Tools(client)
    for tool in (tools.match, tools.score, tools.status):
        server.add_tool(tool, annotations=_READS)
    if not is_read_only:
        server.add_tool(tools.ingest, annotations=_WRITES)
    return server


class _Tools:
    def __init__(self, client: AsyncTextMatchClient) -> None:
        self._client = client

    async def match(
        self,
        query: str,
        top_k: Annotated[int, Field(ge=1, le=100)] = 5,
        where: Annotated[str, Field(description='Such as: module = "os" and year > 2020')] = "",
        min_score: Annotated[float, Field(ge=0, le=1)] = 0.0,
        collection: Collection = "",
    ) -> dict[str, Any]:
        """Find the stored texts that mean the same as a query, best first, each with a score of 0 to 1."""
        with _shown_errors():
            client = self._of(collection)
            result = await client.match(query, top_k=top_k, where=where or None, min_score=min_score)
            return result_to_json(result)

    async def score(self, first: str, second: str) -> dict[str, Any]:
        """Score how similar two texts are in meaning, from 0 (not at all) to 1 (the same)."""
        with _shown_errors():
            result = await self._client.score(first, [second])
            return {"score": float(result.scores[0]), "truncated": result.truncated[0]}

    async def ingest(self, documents: list[ToolDocument], collection: Collection = "") -> dict[str, Any]:
        """Store documents, which are searchable soon. The id of a stored one replaces it."""
        with _shown_errors():
            given = [document.model_dump() for document in documents]
            summary = await self._of(collection).ingest_all(given)
            return {
                "accepted": summary.accepted,
                "unchanged": summary.unchanged,
                "rejected": summary.rejected,
                "rejections": [{"id": one.id, "error": str(one.error)} for one in summary.rejections],
            }

    async def status(self, collection: Collection = "") -> dict[str, Any]:
        """How many documents are stored, queued and failed."""
        with _shown_errors():
            return asdict(await self._of(collection).ingest_status())

    def _of(self, collection: str) -> AsyncTextMatchClient:
        return self._client.using(collection=collection) if collection else self._client


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Let the model read what went wrong. The message of any other exception is withheld from it."""
    try:
        yield
    except TextMatchError as error:
        raise ToolError(message_of(error)) from error
