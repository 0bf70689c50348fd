"""The Celery app, the same for those who publish tasks and for the workers that run them.

What matters for durability:

* A task is acknowledged after it has run (`task_acks_late`), and a worker holds no more messages than it
  works on (`worker_prefetch_multiplier` 1).
* Retries never use Celery's countdown: such a message is held by one worker until it is due, and once that is
  longer than the visibility timeout, another worker gets a copy of it, and so on. Workers wait in the task
  or put the message back at the end of the queue.
* Nothing but JSON is read, so that whoever can write to Redis cannot run code in a worker.

How soon the messages of a killed worker are taken again is explained in transport.py.
"""

from __future__ import annotations

import ssl
from math import ceil
from urllib.parse import urlsplit

from celery import Celery
from kombu.entity import Queue

from textmatch.queue import keys

DEFAULT_VISIBILITY_TIMEOUT_SECONDS = 30.0
DEFAULT_SWEEP_SECONDS = 5.0
_CONNECT_TIMEOUT_SECONDS = 2.0
_ANSWER_TIMEOUT_SECONDS = 5.0


def make_app(
    redis_url: str,
    *,
    visibility_timeout_seconds: float = DEFAULT_VISIBILITY_TIMEOUT_SECONDS,
    sweep_seconds: float = DEFAULT_SWEEP_SECONDS,
) -> Celery:
    """An app that reaches Redis at `redis://` or `rediss://` (TLS). Connects when used.

    Args:
        visibility_timeout_seconds: a message whose holder has been silent for so long is given to another.
        sweep_seconds: how often workers look for such messages.
    """
    app = Celery("textmatch", broker=redis_url, set_as_current=False)
    app.conf.update(
        broker_transport="textmatch.queue.transport:Transport",
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if _uses_tls(redis_url) else None,
        broker_transport_options={
            "visibility_timeout": visibility_timeout_seconds,
            "unacked_restore_interval": sweep_seconds,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": max(1, ceil(sweep_seconds)),
            "unacked_key": keys.UNACKED,
            "unacked_index_key": keys.UNACKED_INDEX,
            "unacked_mutex_key": keys.UNACKED_MUTEX,
            "priority_steps": [0],
            "socket_connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "socket_timeout": _ANSWER_TIMEOUT_SECONDS,
            "socket_keepalive": True,
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
        # How often publishing is tried before the caller hears of it.
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2},
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def _uses_tls(redis_url: str) -> bool:
    return urlsplit(redis_url).scheme == "rediss"
