"""The Celery app of the workers, which any Celery client of the same broker can publish to.

What matters for durability:

* A task is acknowledged after it has run (`task_acks_late`); transport.py bounds how much a worker holds.
* Retries never use Celery's countdown: such a message is held by one worker until it is due, and once that is
  longer than the visibility timeout, another worker gets a copy of it, and so on. Workers wait in the task
  or put the message back at the end of the queue.
* Nothing but JSON is read, so that whoever can write to Redis cannot run code in a worker.

How soon the messages of a killed worker are taken again is explained in transport.py.
"""

from __future__ import annotations

import ssl
from typing import Any

from celery import Celery
from kombu.entity import Queue

from textmatch.queue import keys
from textmatch.queue.redis_client import RedisAddress, parse

DEFAULT_VISIBILITY_TIMEOUT_SECONDS = 30.0
DEFAULT_SWEEP_SECONDS = 5.0
_CONNECT_TIMEOUT_SECONDS = 2.0
_ANSWER_TIMEOUT_SECONDS = 5.0
_MAX_CONNECTIONS = 10_000


def make_app(
    redis_url: str,
    *,
    batches: int = 1,
    visibility_timeout_seconds: float = DEFAULT_VISIBILITY_TIMEOUT_SECONDS,
    sweep_seconds: float = DEFAULT_SWEEP_SECONDS,
) -> Celery:
    """An app for a Redis at one of the URLs of address.py. Connects when used.

    Args:
        batches: how many batches the worker works on at a time.
        visibility_timeout_seconds: a message whose holder has been silent for so long is given to another.
        sweep_seconds: how often workers look for such messages.
    """
    address = parse(redis_url)
    tls = address.tls
    transport = "SentinelTransport" if address.master_name else "Transport"
    app = Celery("textmatch", broker=address.broker_url(), set_as_current=False)
    app.conf.update(
        broker_transport=f"textmatch.queue.transport:{transport}",
        broker_use_ssl=None if tls is None else {"ssl_cert_reqs": ssl.CERT_REQUIRED, **tls},
        broker_transport_options={
            **_sentinel_options(address),
            "batches": batches,
            "visibility_timeout": visibility_timeout_seconds,
            "unacked_restore_interval": sweep_seconds,
            "unacked_restore_throttle": 1,
            "unacked_key": keys.UNACKED,
            "unacked_index_key": keys.UNACKED_INDEX,
            "priority_steps": [0],
            "socket_connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "socket_timeout": _ANSWER_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            # Every thread of a worker may acknowledge at the same time.
            "max_connections": _MAX_CONNECTIONS,
        },
        broker_connection_timeout=_CONNECT_TIMEOUT_SECONDS,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        result_backend=None,
        task_ignore_result=True,
        task_queues=[Queue(keys.QUEUE, routing_key=keys.QUEUE)],  # type: ignore[no-untyped-call]
        task_default_queue=keys.QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def _sentinel_options(address: RedisAddress) -> dict[str, Any]:
    if not address.master_name:
        return {}
    tls = {} if address.tls is None else {"ssl": True, **address.tls}
    timeouts = {"socket_connect_timeout": _CONNECT_TIMEOUT_SECONDS, "socket_timeout": _ANSWER_TIMEOUT_SECONDS}
    return {
        "master_name": address.master_name,
        "sentinels": list(address.hosts),
        "sentinel_kwargs": {**timeouts, **address.sentinel_login, **tls},
    }
