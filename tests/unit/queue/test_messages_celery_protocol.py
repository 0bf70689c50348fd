"""What lies in the queue around a task."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kombu import compression

from tests.support.collections import KEYS
from textmatch.queue import messages
from textmatch.queue.messages import MalformedMessage, Stamp


def celery_message(body: Any = (["argument"], {}, {})) -> dict[str, Any]:
    """As Celery 5 publishes it."""
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "textmatch.index_documents", "id": "some-id", "lang": "py", "eta": None},
        "properties": {"body_encoding": "base64", "delivery_tag": "tag", "priority": 0},
    }


def unpack(message: Any) -> dict[str, Any]:
    return messages.unpack(json.dumps(message).encode(), KEYS.queue)


def body_of(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def test_the_argument_and_the_id_are_kept():
    unpacked = unpack(celery_message(body=[["文档 🙂"], {}, {"callbacks": None}]))
    assert body_of(unpacked) == [["文档 🙂", None], {}, {}]
    assert unpacked["headers"] == {"task": "textmatch.index_documents", "id": "some-id", "lang": "py"}
    assert unpacked["properties"]["delivery_info"]["routing_key"] == KEYS.queue


def test_every_delivery_has_a_tag_of_its_own():
    tags = {unpack(celery_message())["properties"]["delivery_tag"] for _ in range(3)}
    assert len(tags) == 3
    assert "tag" not in tags


def test_nothing_can_delay_drop_or_divert_a_task():
    message = celery_message(body=[["x"], {}, {"callbacks": [{"task": "other"}], "chord": 5}])
    message["headers"] |= {"eta": "2999-01-01T00:00:00", "expires": "1999-01-01T00:00:00", "timelimit": 5}
    message["properties"]["delivery_info"] = {"exchange": "elsewhere", "routing_key": "other"}
    unpacked = unpack(message)
    assert set(unpacked["headers"]) == {"task", "id", "lang"}
    assert unpacked["properties"]["delivery_info"] == {"exchange": "", "routing_key": KEYS.queue}
    assert body_of(unpacked) == [["x", None], {}, {}]


@pytest.mark.parametrize("task_id", [None, "", 5, {}])
def test_a_task_without_an_id_gets_one(task_id: Any):
    message = celery_message()
    message["headers"]["id"] = task_id
    assert len(unpack(message)["headers"]["id"]) == 36


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"hello", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"5", "must be a JSON object"),
        (b"{}", "headers must be a JSON object"),
        (b'{"headers": {}}', "properties must be a JSON object"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes, complaint: str):
    with pytest.raises(MalformedMessage, match=complaint):
        messages.unpack(raw, KEYS.queue)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"headers": {"task": "other"}}, "headers.task is 'other'"),
        ({"headers": {"task": "textmatch.index_documents", "compression": "zlib"}}, "compression is 'zlib'"),
        ({"headers": {"task": "textmatch.index_documents", "compression": {}}}, "TypeError"),
        ({"content-type": "application/x-python-serialize"}, "content-type is"),
        ({"content-encoding": "binary"}, "content-encoding is"),
        ({"properties": {}}, "body_encoding is None"),
        ({"body": None}, "body must be a string"),
        ({"body": "!"}, "body is not base64"),
        ({"body": "AAAA"}, "body is not JSON"),
    ],
)
def test_a_message_that_is_not_ours_is_refused(changes: dict[str, Any], complaint: str):
    with pytest.raises(MalformedMessage, match=complaint):
        unpack(celery_message() | changes)


@pytest.mark.parametrize(
    "body", [{}, [], [[], {}, {}], [["a", "b"], {}, {}], [[5], {}, {}], [["a"], {"b": 1}, {}]]
)
def test_a_task_with_other_arguments_is_refused(body: Any):
    with pytest.raises(MalformedMessage, match="exactly one argument"):
        unpack(celery_message(body=body))


def test_a_stamp_goes_along():
    stamp = Stamp(5, (1, -1))
    unpacked = messages.unpack(messages.pack("x", KEYS.queue, stamp).encode(), KEYS.queue)
    assert body_of(unpacked) == [["x", stamp.to_fields()], {}, {}]
    with pytest.raises(MalformedMessage, match="whole numbers"):
        unpack(celery_message() | {"versions": [1.5], "accepted_us": 1})


def compressed(content: bytes, content_type: str) -> dict[str, Any]:
    message = celery_message()
    message["headers"]["compression"] = content_type
    return message | {"body": base64.b64encode(content).decode()}


@pytest.mark.parametrize("name", ["gzip", "bzip2", "lzma"])
def test_what_kombu_compresses_is_read(name: str):
    content, content_type = compression.compress(json.dumps([["文档 🙂"], {}, {}]), name)
    assert body_of(unpack(compressed(content, content_type))) == [["文档 🙂", None], {}, {}]
    with pytest.raises(MalformedMessage, match="cut off|cannot be decompressed"):
        unpack(compressed(content[: len(content) // 2], content_type))
    with pytest.raises(MalformedMessage, match="cannot be decompressed"):
        unpack(compressed(b"no such format", content_type))


def test_a_compressed_message_takes_no_more_memory_than_it_may(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(messages, "_MAX_BODY_BYTES", 1_000)
    content, content_type = compression.compress(json.dumps([["x" * 1_000_000], {}, {}]), "gzip")
    with pytest.raises(MalformedMessage, match="more than 1,000 bytes"):
        unpack(compressed(content, content_type))


def test_the_time_of_acceptance_can_be_read_without_a_worker():
    argument = json.dumps({"schema_version": 2, "accepted_at": 12.5, "documents": []})
    assert messages.accepted_us(json.dumps(celery_message(body=[[argument], {}, {}])).encode()) == 12_500_000
    assert messages.accepted_us(messages.pack("x", KEYS.queue, Stamp(5, (1,))).encode()) == 5
    assert messages.accepted_us(json.dumps(celery_message()).encode()) is None
    assert messages.accepted_us(b"\xff") is None
