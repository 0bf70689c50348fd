"""The tools, called by the client of the official SDK."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.cli.mcp import make_server
from textmatch.client import AsyncTextMatchClient


def server(matcher: RunningServer, encoder: RunningServer, **options: Any) -> Any:
    return make_server(AsyncTextMatchClient(matcher.address, encoder.address), **options)


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def test_documents_are_stored_and_found(
    matcher_server: RunningServer, encoder_server: RunningServer, matcher: ScriptedMatcher
):
    async with Client(server(matcher_server, encoder_server)) as client:
        stored = await call(
            client,
            "ingest",
            documents=[{"id": "cat", "text": "the cat sits"}, {"id": "bad", "text": " "}],
            collection="faq",
        )
        assert (stored["accepted"], stored["rejected"]) == (1, 1)
        assert stored["rejections"] == [{"id": "bad", "error": "text: is empty"}]
        found = await call(client, "match", query="the cat", where="year > 2020", collection="faq")
        assert found["matches"][0]["id"] == "cat"
        assert matcher.match_requests[-1].collection == "faq"
        assert matcher.match_requests[-1].options.filter.must[0].range.gt == 2020
        assert (await call(client, "score", first="four", second="fo"))["score"] == 0.5
        assert (await call(client, "status"))["document_count"] == 1


async def test_an_error_is_told_to_the_model(matcher_server: RunningServer, encoder_server: RunningServer):
    async with Client(server(matcher_server, encoder_server)) as client:
        result = await client.call_tool("match", {"query": "a", "where": "year >"})
        assert result.is_error
        assert "where: is invalid at character 7: expected a number" in str(result.content)


@pytest.mark.parametrize("is_read_only", [False, True])
async def test_a_server_that_only_reads_has_no_tool_that_stores(
    matcher_server: RunningServer, encoder_server: RunningServer, is_read_only: bool
):
    async with Client(server(matcher_server, encoder_server, is_read_only=is_read_only)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    names = {"match", "score", "status"} | (set() if is_read_only else {"ingest"})
    assert tools.keys() == names
    assert all(tools[name].annotations.read_only_hint for name in ("match", "score", "status"))


async def test_the_command_speaks_on_stdin_and_stdout(
    matcher_server: RunningServer, encoder_server: RunningServer
):
    arguments = ["-m", "textmatch.cli", "mcp", "--read-only"]
    addresses = ["--matcher", matcher_server.address, "--encoder", encoder_server.address]
    command = StdioServerParameters(
        command=sys.executable, args=[*arguments, *addresses], env=dict(os.environ)
    )
    async with Client(command) as client:
        result = await client.call_tool("score", {"first": "four", "second": "fo"})
    assert json.loads(result.content[0].text)["score"] == 0.5
