"""The HTTP server: TLS with files that are replaced, a taken port, a drain."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.server import HttpServer
from tests.support.certificates import Authority
from tests.support.gateway import serve_gateway
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.errors import InvalidInput
from textmatch.runtime.process import PortTaken
from textmatch.runtime.tls import ServerTls

MATCH = "/v1/collections/default:match"


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.file))


async def test_https_with_a_certificate_that_is_replaced(
    tmp_path: Path, matcher_server: RunningServer, encoder_server: RunningServer
):
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    tls = old.server(old.issue("server"))
    addresses = matcher_server.address, encoder_server.address
    async with serve_gateway(*addresses, tls=tls) as url:
        async with httpx.AsyncClient(base_url=url, verify=trusting(old)) as http:
            assert (await http.get("/v1/models")).status_code == 200
        new.issue("server")
        async with asyncio.timeout(20):
            while not await is_trusted(url, new):  # noqa: ASYNC110 -- a file has no event
                await asyncio.sleep(0.1)
        assert not await is_trusted(url, old)


async def is_trusted(url: str, authority: Authority) -> bool:
    async with httpx.AsyncClient(base_url=url, verify=trusting(authority)) as http:
        try:
            return (await http.get("/v1/models")).status_code == 200
        except httpx.ConnectError:
            return False


async def test_callers_need_a_certificate_if_a_ca_is_given(
    tmp_path: Path, matcher_server: RunningServer, encoder_server: RunningServer
):
    authority = Authority(tmp_path)
    tls = authority.server(authority.issue("server"), client_ca=authority.file)
    own = authority.issue("client")
    addresses = matcher_server.address, encoder_server.address
    async with serve_gateway(*addresses, tls=tls) as url:
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(base_url=url, verify=trusting(authority)) as http:
                await http.get("/v1/models")
        context = trusting(authority)
        context.load_cert_chain(own.cert, own.key)
        async with httpx.AsyncClient(base_url=url, verify=context) as http:
            assert (await http.get("/v1/models")).status_code == 200


def test_files_that_cannot_be_used_end_the_start(tmp_path: Path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        HttpServer(None, "127.0.0.1", 0, tls=ServerTls(tmp_path / "a", tmp_path / "b"))  # type: ignore[arg-type]


async def test_a_client_ca_that_cannot_be_used_leaves_the_old_files_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    authority = Authority(tmp_path)
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.file.read_bytes())
    tls = authority.server(authority.issue("server"), client_ca=clients)
    server = HttpServer(None, "127.0.0.1", 0, tls=tls)  # type: ignore[arg-type]
    watching = asyncio.create_task(server.watch_certificates())
    clients.write_text("this is not PEM")
    async with asyncio.timeout(20):
        while "certificate not reloaded" not in caplog.text and not watching.done():  # noqa: ASYNC110 -- a log
            await asyncio.sleep(0.1)
    assert not watching.done()
    watching.cancel()


async def test_a_taken_port_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{port}; is the port in use"):
            await HttpServer(None, "127.0.0.1", port).start()  # type: ignore[arg-type]


async def test_a_running_request_is_answered_while_the_server_drains(
    matcher_server: RunningServer, encoder_server: RunningServer, matcher: ScriptedMatcher
):
    matcher.delay_seconds = 1.0
    async with httpx.AsyncClient(timeout=30) as http:
        async with serve_gateway(matcher_server.address, encoder_server.address) as url:
            asking = asyncio.create_task(http.post(url + MATCH, json={"query": "a"}))
            while not matcher.match_requests:  # noqa: ASYNC110 -- another thread
                await asyncio.sleep(0.01)
        assert (await asking).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await http.get(url + "/v1/models")


async def test_the_body_of_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(
    monkeypatch: pytest.MonkeyPatch, gateway_url: str
):
    accepted: list[bool] = []

    def note(protocol: HttpToolsProtocol, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("socket")
        accepted.append(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        connected(protocol, transport)

    connected = HttpToolsProtocol.connection_made
    monkeypatch.setattr(HttpToolsProtocol, "connection_made", note)
    async with httpx.AsyncClient(base_url=gateway_url) as http:
        await http.get("/v1/models")
    assert accepted == [True]
