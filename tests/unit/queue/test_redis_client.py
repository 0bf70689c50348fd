"""URLs of Redis."""

from __future__ import annotations

import pytest

from tests.support.collections import KEYS
from textmatch.errors import InvalidInput
from textmatch.queue.app import make_app
from textmatch.queue.redis_client import RedisAddress, connect, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://example.org", RedisAddress((("example.org", 6379),), None, None, "", 0, None)),
        ("redis://:s%40e@[::1]:1234/5", RedisAddress((("::1", 1234),), None, "s@e", "", 5, None)),
        (
            "rediss://user:p@h/2?ssl_ca_certs=/ca.pem",
            RedisAddress((("h", 6379),), "user", "p", "", 2, {"ssl_ca_certs": "/ca.pem"}),
        ),
        (
            "sentinel://:p@a:1,b/main/3?sentinel_password=q",
            RedisAddress((("a", 1), ("b", 26379)), None, "p", "main", 3, None, {"password": "q"}),
        ),
        ("sentinels://a/main", RedisAddress((("a", 26379),), None, None, "main", 0, {})),
    ],
)
def test_every_part_is_read(url: str, expected: RedisAddress):
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://:geheim@h", "it must begin with"),
        ("redis://:geheim@a,b", "only Sentinels may have several hosts"),
        ("sentinel://:geheim@a,b", "the name of the master is missing"),
        ("sentinel://:geheim@a,,b/main", "a host is missing"),
        ("redis://:geheim@h/x", "the database is not a whole number"),
        ("redis://:geheim@h:x", "a port is not a number"),
        ("redis://user:ge/heim@h", "a port is not a number"),
        ("redis://:geheim@h/0?ssl_ca_certs=x", "it takes no options"),
        ("rediss://:geheim@h/0?verify=geheim", "its only options are ssl_ca_certs"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, problem: str):
    with pytest.raises(InvalidInput, match=f"TEXTMATCH_REDIS_URL: is not a Redis URL: {problem}") as caught:
        parse(url)
    assert "heim" not in str(caught.value)


def test_both_clients_ask_the_sentinels():
    url = "sentinel://:p@a:1,b:2/main/3"
    app = make_app(url, KEYS)
    assert app.conf.broker_transport_options["sentinels"] == [("a", 1), ("b", 2)]
    assert app.conf.broker_transport_options["master_name"] == "main"
    pool = connect(url).connection_pool
    assert (pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == (3, "p")


def test_a_password_of_any_characters_reaches_celery():
    with make_app("redis://us%2Fer:p%40%3A%2F@h:1/2", KEYS).connection_for_write() as connection:
        assert (connection.userid, connection.password) == ("us/er", "p@:/")
        assert (connection.hostname, connection.port, connection.virtual_host) == ("h", 1, "2")
