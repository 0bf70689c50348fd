"""TLS and mutual TLS over real connections; certificates are replaced while servers and clients run."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import Authority, Pair
from tests.support.qdrant import API_KEY, QdrantServer, join_streams
from tests.support.scripted_encoder_servicer import ScriptedEncoder
from tests.support.scripted_servicer import RunningServer, ScriptedMatcher
from textmatch.client import AsyncTextMatchClient, ClientTls, ServerUnreachable, TextMatchClient
from textmatch.encoder_client import EncoderClient
from textmatch.errors import DependencyUnavailable, InvalidInput
from textmatch.index.client import connect as connect_qdrant
from textmatch.index.client import translated_errors
from textmatch.runtime.settings import ServerSettings, StoreSettings, load
from textmatch.runtime.tls import ServerTls


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextmanager
def matcher_with(tls: ServerTls) -> Iterator[str]:
    server = RunningServer.of_matcher(ScriptedMatcher(), tls=tls)
    yield server.address
    server.stop()


def count_documents(address: str, tls: ClientTls | None) -> int:
    """Over a connection of its own."""
    with TextMatchClient(address, tls=tls, timeout_seconds=20) as client:
        return client.ingest_status().document_count


def test_tls_lets_in_whoever_trusts_the_server_and_nobody_in_the_clear(authority: Authority, tmp_path: Path):
    with matcher_with(authority.server(authority.issue("server"))) as address:
        assert count_documents(address, authority.client()) == 0
        for stranger in (None, Authority(tmp_path, "other").client(), ClientTls("system")):
            with pytest.raises(ServerUnreachable):
                count_documents(address, stranger)


def test_mutual_tls_lets_in_only_certificates_that_are_valid_and_of_its_authority(
    authority: Authority, tmp_path: Path
):
    stranger = Authority(tmp_path, "other").issue("stranger")
    with matcher_with(authority.server(authority.issue("server"), authority.file)) as address:
        assert count_documents(address, authority.client(authority.issue("client"))) == 0
        for refused in (None, stranger, authority.issue("expired", is_expired=True)):
            with pytest.raises(ServerUnreachable):
                count_documents(address, authority.client(refused))


def test_replicas_in_a_list_of_addresses_are_trusted_by_their_address(authority: Authority, tmp_path: Path):
    pair = authority.issue("server")
    with matcher_with(authority.server(pair)) as first, matcher_with(authority.server(pair)) as second:
        target = f"ipv4:{first},{second}"
        assert count_documents(target, authority.client()) == 0
        with pytest.raises(ServerUnreachable):
            count_documents(target, Authority(tmp_path, "other").client())


def test_a_server_whose_certificate_has_expired_is_not_trusted(authority: Authority):
    expired = authority.issue("server", is_expired=True)
    with matcher_with(authority.server(expired)) as address, pytest.raises(ServerUnreachable):
        count_documents(address, authority.client())


def test_a_replaced_certificate_is_used_for_new_connections_and_old_ones_stay(
    authority: Authority, tmp_path: Path
):
    pair = authority.issue("server")
    with (
        matcher_with(authority.server(pair)) as address,
        TextMatchClient(address, tls=authority.client(), timeout_seconds=20) as connected,
    ):
        assert connected.ingest_status().document_count == 0
        following = Authority(tmp_path, "following")
        assert following.issue("server") == pair
        assert count_documents(address, following.client()) == 0
        assert connected.ingest_status().document_count == 0
        with pytest.raises(ServerUnreachable):
            count_documents(address, authority.client())


def test_a_broken_certificate_leaves_the_old_one_in_use(authority: Authority):
    pair = authority.issue("server")
    with matcher_with(authority.server(pair)) as address:
        pair.cert.write_text("no certificate")
        assert count_documents(address, authority.client()) == 0
        pair.cert.unlink()
        assert count_documents(address, authority.client()) == 0


async def test_a_client_follows_its_own_certificate(authority: Authority):
    """Its next call opens a new connection with the current content of the files."""
    server_tls = authority.server(authority.issue("server"), authority.file)
    server = await asyncio.to_thread(RunningServer.of_encoder, ScriptedEncoder(), tls=server_tls)
    expired = authority.issue("client", is_expired=True)
    client = EncoderClient(server.address, tls=authority.client(expired))
    with pytest.raises(DependencyUnavailable):
        await client.bi_encoders(timeout_seconds=5)
    authority.issue("client")
    await asyncio.sleep(1.1)  # the files are looked at once a second
    assert [model.name for model in await client.bi_encoders(timeout_seconds=20)] == ["tiny"]
    expired.cert.unlink()
    await asyncio.sleep(1.1)
    assert await client.bi_encoders(timeout_seconds=20)
    await client.close()
    await asyncio.to_thread(server.stop)


def test_the_synchronous_client_follows_its_own_certificate(authority: Authority):
    """Also while a call of the old connection runs."""
    with matcher_with(authority.server(authority.issue("server"), authority.file)) as address:
        renewed = authority.issue("client", is_expired=True)
        with TextMatchClient(address, tls=authority.client(renewed), timeout_seconds=20) as client:
            with pytest.raises(ServerUnreachable):
                client.ingest_status()
            authority.issue("client")
            time.sleep(1.1)  # the files are looked at once a second
            assert client.ingest_status().document_count == 0
            running = client.ingest({"id": str(number), "text": "one"} for number in range(2_000))
            next(running)
            authority.issue("client")
            time.sleep(1.1)
            assert client.ingest_status().document_count >= 200
            assert len(list(running)) == 1_999
            renewed.cert.unlink()
            time.sleep(1.1)
            assert client.ingest_status().document_count == 2_000


async def test_the_asyncio_client_follows_its_own_certificate(authority: Authority):
    tls = authority.server(authority.issue("server"), authority.file)
    server = await asyncio.to_thread(RunningServer.of_matcher, ScriptedMatcher(), tls=tls)
    expired = authority.issue("client", is_expired=True)
    async with AsyncTextMatchClient(
        server.address, tls=authority.client(expired), timeout_seconds=20
    ) as client:
        with pytest.raises(ServerUnreachable):
            await client.ingest_status()
        authority.issue("client")
        await asyncio.sleep(1.1)
        assert (await client.ingest_status()).document_count == 0
    await asyncio.to_thread(server.stop)


@pytest.mark.parametrize("client_class", [TextMatchClient, AsyncTextMatchClient])
def test_a_client_names_a_file_that_it_cannot_read(client_class: type[TextMatchClient], tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"missing\.pem cannot be read"):
        client_class(tls=ClientTls(str(tmp_path / "missing.pem")))


def test_a_key_that_is_not_of_the_certificate_ends_the_start_with_a_clear_line(authority: Authority):
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(InvalidInput, match=r"one\.pem and .*other\.key must be a certificate and its key"):
        ServerTls(one.cert, other.key).credentials()
    with pytest.raises(InvalidInput, match=r"missing\.pem cannot be read: No such file"):
        ServerTls(one.cert.with_name("missing.pem"), one.key).credentials()
    with pytest.raises(InvalidInput, match=r"missing\.pem cannot be read"):
        ClientTls(str(one.cert.with_name("missing.pem"))).credentials()


@pytest.mark.parametrize(
    "environment",
    [
        {"TEXTMATCH_TLS_CERT": "a.pem"},
        {"TEXTMATCH_TLS_KEY": "a.key"},
        {"TEXTMATCH_TLS_CLIENT_CA": "ca.pem"},
    ],
)
def test_half_of_what_tls_needs_is_refused(environment: dict[str, str]):
    with pytest.raises(InvalidInput, match="TEXTMATCH_TLS_C"):
        load(ServerSettings, environment).server_tls()


def test_a_client_takes_its_certificate_and_its_ca_from_the_environment():
    assert load(StoreSettings, {}).client_tls() is None
    pair = {"TEXTMATCH_TLS_CERT": "a.pem", "TEXTMATCH_TLS_KEY": "a.key"}
    assert load(StoreSettings, {**pair, "TEXTMATCH_TLS_CA": "ca.pem"}).client_tls() == ClientTls(
        "ca.pem", "a.pem", "a.key"
    )
    with pytest.raises(InvalidInput, match="must be set together"):
        load(StoreSettings, {"TEXTMATCH_TLS_CA": "ca.pem", "TEXTMATCH_TLS_CERT": "a.pem"}).client_tls()


@asynccontextmanager
async def tls_in_front_of(port: int, pair: Pair, client_ca: Path) -> AsyncIterator[int]:
    """Speaks TLS, as a real Qdrant can, and passes everything on to a port without it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client_ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pair.cert, pair.key)
    context.set_alpn_protocols(["h2"])

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await join_streams((reader, writer), await asyncio.open_connection("127.0.0.1", port))
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_qdrant_is_reached_by_mutual_tls(authority: Authority, own_qdrant: QdrantServer):
    ca, client_pair = str(authority.file), authority.issue("client")
    async with tls_in_front_of(own_qdrant.port, authority.issue("server"), authority.file) as port:
        own = {"cert": str(client_pair.cert), "key": str(client_pair.key)}
        client = connect_qdrant(f"https://127.0.0.1:{port}", API_KEY, ca=ca, **own)
        assert (await client.get_collections()).collections == []
        await client.close()
        for files in ({}, own, {"ca": ca}):
            client = connect_qdrant(f"https://127.0.0.1:{port}", timeout_seconds=5, **files)
            with pytest.raises(DependencyUnavailable):
                async with translated_errors():
                    await client.get_collections()
            await client.close()
