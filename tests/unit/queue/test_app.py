"""How the Celery app is set up."""

from __future__ import annotations

import ssl

import pytest

from tests.support.collections import KEYS
from textmatch.errors import InvalidInput
from textmatch.queue.app import make_app
from textmatch.queue.redis_client import connect


def test_tls_is_verified_by_both_clients():
    app = make_app("rediss://example.org:6380/0", KEYS)
    with app.connection_for_write() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    pool = connect("rediss://example.org:6380/0").connection_pool
    assert pool.connection_class.__name__ == "SSLConnection"


def test_plain_connections_use_no_tls():
    with make_app("redis://example.org:6379/0", KEYS).connection_for_write() as connection:
        assert not connection.ssl


def test_only_json_is_read():
    app = make_app("redis://example.org:6379/0", KEYS)
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"


@pytest.mark.parametrize("url", ["", "example.org", "amqp://user:geheim@example.org"])
def test_another_url_is_refused_without_showing_it(url: str):
    with pytest.raises(InvalidInput, match="TEXTMATCH_REDIS_URL: is not a Redis URL") as caught:
        connect(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("version", ["5.6.9", "5.8.0", "5.70.0", "6.0.0"])
def test_another_kombu_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, version: str):
    """Three of its internals are overridden; another one may lose messages without an error."""
    monkeypatch.setattr("kombu.__version__", version)
    with pytest.raises(InvalidInput, match=f"kombu: is {version}; textmatch needs 5.7"):
        make_app("redis://example.org:6379/0", KEYS)
