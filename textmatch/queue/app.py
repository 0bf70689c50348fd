"""The Celery app of the workers. Any Celery client of the same broker can publish to it.

For durability:

* A task is acknowledged after it has run (`task_acks_late`). transport.py limits how many messages a worker
  holds, and explains when the messages of a killed worker are redelivered.
* Retries never use Celery's countdown: a worker would hold the message until it is due, and after the
  visibility timeout another worker would get a copy. Workers wait in the task, or put the message back.
* Only JSON is read, so access to Redis does not let anyone run code in a worker.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu.entity import Queue

from textmatch.queue import transport
from textmatch.queue.keys import Keys
from textmatch.queue.redis_client import CONNECT_TIMEOUT_SECONDS, SOCKET_OPTIONS, parse

DEFAULT_VISIBILITY_TIMEOUT_SECONDS = 30.0
DEFAULT_SWEEP_SECONDS = 5.0
_MAX_CONNECTIONS = 10_000


def make_app(
    redis_url: str,
    keys: Keys,
    *,
    batches: int = 1,
    visibility_timeout_seconds: float = DEFAULT_VISIBILITY_TIMEOUT_SECONDS,
    sweep_seconds: float = DEFAULT_SWEEP_SECONDS,
    intake: Callable[[], int | None] = lambda: None,
) -> Celery:
    """An app for a Redis at a URL as for redis_client.py. Connects when used.

    Args:
        batches: how many batches the worker works on at a time.
        visibility_timeout_seconds: a message whose lease the worker has not renewed for so long is given to
            another worker.
        sweep_seconds: how often workers look for such messages.
        intake: how many messages the worker may hold now; None is no limit. Called in Celery's threads.

    Raises:
        InvalidInput: the URL has another form, or kombu is not of the version that transport.py is made for.
    """
    transport.check_kombu()
    address = parse(redis_url)
    tls = address.tls
    transport_class: type[transport.Transport | transport.SentinelTransport] = transport.Transport
    sentinels: dict[str, Any] = {}
    if address.master_name:
        transport_class = transport.SentinelTransport
        sentinels = {
            "master_name": address.master_name,
            "sentinels": list(address.hosts),
            "sentinel_kwargs": address.sentinel_options(),
        }
    app = Celery("textmatch", broker=address.broker_url(), set_as_current=False)
    app.conf.update(
        broker_transport=f"{transport_class.__module__}:{transport_class.__name__}",
        broker_use_ssl=None if tls is None else {"ssl_cert_reqs": ssl.CERT_REQUIRED, **tls},
        broker_transport_options={
            **sentinels,
            "batches": batches,
            "intake": intake,
            "visibility_timeout": visibility_timeout_seconds,
            "unacked_restore_interval": sweep_seconds,
            "unacked_restore_throttle": 1,
            "installation": keys.installation,
            "unacked_key": keys.unacked,
            "unacked_index_key": keys.unacked_index,
            "priority_steps": [0],
            **SOCKET_OPTIONS,
            # Every thread of a worker may acknowledge at the same time.
            "max_connections": _MAX_CONNECTIONS,
        },
        broker_connection_timeout=CONNECT_TIMEOUT_SECONDS,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        result_backend=None,
        task_ignore_result=True,
        task_queues=[Queue(keys.queue, routing_key=keys.queue)],  # type: ignore[no-untyped-call]
        task_default_queue=keys.queue,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,  # transport.py prefetches less while messages are large
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app
