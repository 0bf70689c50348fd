"""The version of the server is checked: an old one would ignore the conditions of writes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from qdrant_client import grpc as qdrant

from tests.integration.ingest.waiting import eventually
from textmatch.index.client import QdrantTooOld, check_version, check_version_at_start, connect


class OldQdrant(grpc.GenericRpcHandler):
    """Answers with a version, and nothing else."""

    version = "1.15.5"

    def service(self, handler_call_details: Any) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            return qdrant.HealthCheckReply(title="qdrant", version=self.version)

        return grpc.unary_unary_rpc_method_handler(
            answer, response_serializer=qdrant.HealthCheckReply.SerializeToString
        )


@pytest.fixture
def old() -> OldQdrant:
    return OldQdrant()


@pytest.fixture
async def url(old: OldQdrant) -> AsyncIterator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([old])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"http://127.0.0.1:{port}"
    await server.stop(grace=None)


@pytest.mark.parametrize("version", ["1.15.5", "1.9.0", "0.11.7"])
async def test_an_old_server_is_refused(url: str, old: OldQdrant, version: str):
    old.version = version
    client = connect(url)
    message = f"Qdrant is version {version}; textmatch needs 1.16 or newer"
    with pytest.raises(QdrantTooOld, match=message):
        await check_version(client)
    with pytest.raises(QdrantTooOld, match=message):
        await check_version_at_start(client)
    await client.close()


@pytest.mark.parametrize("version", ["1.16.0", "1.19.2", "2.0.0-dev", "v1.17.1"])
async def test_newer_servers_are_not(url: str, old: OldQdrant, version: str):
    old.version = version
    client = connect(url)
    await check_version(client)
    await client.close()


async def test_a_server_that_does_not_answer_is_checked_later():
    client = connect("http://127.0.0.1:1")
    await check_version_at_start(client)
    await client.close()


async def test_a_key_without_tls_adds_no_line_to_logs_and_errors():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        await connect("http://127.0.0.1:1", "a-key").close()
    assert found == []


async def test_an_older_server_that_takes_the_place_of_a_newer_one_is_refused(url: str, old: OldQdrant):
    old.version = "1.16.0"
    client = connect(url)
    await check_version(client)
    old.version = "1.15.5"
    watching = asyncio.create_task(client.guard.watch_forever())

    async def is_refused() -> bool:
        return client.guard.error is not None

    await eventually(is_refused, "the check of the version")
    with pytest.raises(QdrantTooOld, match="Qdrant is version 1.15.5"):
        await client.get_collections()
    watching.cancel()
    await client.close()


@pytest.mark.parametrize("program", ["workers", "services.matcher"])
async def test_a_process_does_not_start_with_an_old_server(url: str, program: str):
    environment = {
        **os.environ,
        "TEXTMATCH_QDRANT_URL": url,
        "TEXTMATCH_WORKER_METRICS_PORT": "0",
        "TEXTMATCH_MATCHER_METRICS_PORT": "0",
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", program, env=environment, stderr=subprocess.PIPE
    )
    _, errors = await started.communicate()
    assert started.returncode == 1
    assert b"Qdrant is version 1.15.5; textmatch needs 1.16 or newer" in errors
