"""Kombu's Redis transport, with its one hole closed: no message is lost with a worker that dies.

Kombu takes a message with BRPOP and records it as unacknowledged in a second step. A worker that is killed
between the two has removed the message from the queue and left no trace of it. Here the message moves
atomically (BLMOVE) to the list `textmatch:taken` and leaves it once it is recorded as unacknowledged. What
two sweeps in a row find in that list belongs to nobody and goes back to the queue. Messages that are no task
of ours go to the dead letters here, where the whole message is at hand, because kombu and Celery would drop
them.

How soon a message of a killed worker is taken again. A held message carries the time at which it was last
known to be held, and sweeps put it back once that is `visibility_timeout_seconds` ago. Every worker sweeps
when it connects and then every `sweep_seconds`; one sweeps at a time, under a lock that expires after
`sweep_seconds` in case its holder is killed. So the bound is

    visibility_timeout_seconds + 2 * sweep_seconds        (held messages)
    3 * sweep_seconds                                     (messages taken and not yet recorded)

The queue has one list: priorities are not supported.
"""

from __future__ import annotations

from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis as kombu_redis

from textmatch.queue import envelope, keys
from textmatch.queue.dead_letters import of_raw
from textmatch.queue.messages import MalformedMessage

_PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('RPUSH', KEYS[2], ARGV[1])
  return 1
end
return 0
"""


class QoS(kombu_redis.QoS):
    """Puts orphans back at every sweep, besides what kombu puts back itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._taken_before: set[bytes] = set()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """One sweep."""
        super().restore_visible(*args, **kwargs)  # type: ignore[no-untyped-call]
        with self.channel.conn_or_acquire() as client:
            taken = set(client.lrange(keys.TAKEN, 0, -1))
            put_back = client.register_script(_PUT_BACK)
            for orphan in taken & self._taken_before:
                put_back(keys=[keys.TAKEN, keys.QUEUE], args=[orphan])
            self._taken_before = taken


class Channel(kombu_redis.Channel):
    """Takes messages so that each is always in exactly one list or recorded as unacknowledged."""

    QoS = QoS
    _in_poll: Any
    _brpop_sent_at: Any

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for a message; the answer is read by `_brpop_read`."""
        seconds = timeout or self.brpop_timeout
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command("BLMOVE", keys.QUEUE, keys.TAKEN, "RIGHT", "LEFT", seconds)

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the message that came. Raises Empty when none came in time."""
        raw = self._read_answer(**options)
        if raw is None:
            raise Empty
        try:
            message = envelope.unpack(raw)
        except MalformedMessage as error:
            self._refuse(raw, error)
            raise Empty from error
        self.connection._deliver(message, keys.QUEUE)  # noqa: SLF001 -- what kombu's own does
        with self.conn_or_acquire() as client:
            client.lrem(keys.TAKEN, 1, raw)
        return True

    def _read_answer(self, **options: Any) -> bytes | None:
        try:
            raw: bytes | None = self.client.parse_response(self.client.connection, "BLMOVE", **options)
        except self.connection_errors:
            # The next poll connects again.
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
        return raw

    def _refuse(self, raw: bytes, error: MalformedMessage) -> None:
        letter = of_raw(raw.decode(errors="backslashreplace"), str(error))
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            pipe.hset(keys.DEAD_LETTERS, letter.key, letter.to_json()).lrem(keys.TAKEN, 1, raw).execute()


class Transport(kombu_redis.Transport):
    """What `broker_transport` names."""

    Channel = Channel
