"""Celery's message around a task, as it lies in the queue: checked, and made anew from what is needed.

    {"body": base64 of JSON [[argument], {}, {...}], "content-type": "application/json",
     "content-encoding": "utf-8", "headers": {"task", "id", ...}, "properties": {"body_encoding": "base64",
     ...}}

Anyone may push into the queue, so that nothing is taken for granted. What could make Celery drop, delay or
divert a task (expiry, countdown, callbacks, a delivery tag used twice) is left behind.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any

from textmatch.queue.keys import QUEUE
from textmatch.queue.messages import TASK_NAME, MalformedMessage

_CONTENT_TYPE = "application/json"
_CONTENT_ENCODING = "utf-8"
_BODY_ENCODING = "base64"


def pack(argument: str) -> str:
    """The message for a task with this argument, as it goes into the queue."""
    return json.dumps(_message(_new_body(argument), str(uuid.uuid4())))


def unpack(raw: bytes) -> dict[str, Any]:
    """The message for Celery, with a delivery tag of its own.

    Raises:
        MalformedMessage: it is no task of ours, or not one that can be read.
    """
    message = _object(_json(raw, "the message"), "the message")
    headers = _object(message.get("headers"), "headers")
    properties = _object(message.get("properties"), "properties")
    for field, value, needed in (
        ("headers.task", headers.get("task"), TASK_NAME),
        ("headers.compression", headers.get("compression"), None),
        ("properties.body_encoding", properties.get("body_encoding"), _BODY_ENCODING),
        ("content-type", message.get("content-type"), _CONTENT_TYPE),
        ("content-encoding", message.get("content-encoding"), _CONTENT_ENCODING),
    ):
        if value != needed:
            raise MalformedMessage(f"{field} is {value!r}; it must be {needed!r}")
    task_id = headers.get("id")
    body = _new_body(_argument(message.get("body")))
    return _message(body, task_id if isinstance(task_id, str) and task_id else str(uuid.uuid4()))


def _message(body: str, task_id: str) -> dict[str, Any]:
    return {
        "body": body,
        "content-type": _CONTENT_TYPE,
        "content-encoding": _CONTENT_ENCODING,
        "headers": {"lang": "py", "task": TASK_NAME, "id": task_id},
        "properties": {
            "body_encoding": _BODY_ENCODING,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
        },
    }


def _argument(encoded_body: object) -> str:
    if not isinstance(encoded_body, str):
        raise MalformedMessage("body is no string")
    try:
        body = base64.b64decode(encoded_body, validate=True)
    except ValueError as error:
        raise MalformedMessage(f"body is not base64: {error}") from error
    match _json(body, "body"):
        case [[str() as argument], dict() as kwargs, _] if not kwargs:
            return argument
    raise MalformedMessage("the task must have exactly one argument, a string")


def _new_body(argument: str) -> str:
    return base64.b64encode(json.dumps([[argument], {}, {}]).encode()).decode()


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{what} is no JSON object")
    return value


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what} is not JSON: {error}") from error
