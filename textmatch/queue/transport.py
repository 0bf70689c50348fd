"""Kombu's Redis transport, with its holes closed: no message is lost with a worker that dies.

Kombu takes a message with BRPOP and records it as unacknowledged in a second step. A worker that is killed
between the two has removed the message from the queue and left no trace of it. Here the message moves
atomically (BLMOVE) to the list `textmatch:taken` and leaves it once it is recorded as unacknowledged. What
two sweeps in a row find in that list belongs to nobody and goes back to the queue. holding.py has the steps,
and how they go on in a Redis at `maxmemory`. Messages that are no task of ours go to the dead letters here,
where the whole message is at hand, because kombu and Celery would drop them.

How many messages a worker holds: one for each of its batches, whatever their size, and more as long as all
that it holds is small, so that it can make batches of small messages.

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
from time import monotonic, sleep, time
from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from textmatch.queue import envelope, holding, keys
from textmatch.queue.dead_letters import of_raw
from textmatch.queue.messages import MalformedMessage

_SMALL_BYTES_PER_BATCH = 64 * 1024
_PAUSE_SECONDS = 0.1


class QoS(kombu_redis.QoS):
    """Holds messages, and puts back at every sweep what no living worker holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._taken_before: set[bytes] = set()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """One sweep."""
        super().restore_visible(*args, **kwargs)  # type: ignore[no-untyped-call]
        with self.channel.conn_or_acquire() as client:
            taken = set(client.lrange(keys.TAKEN, 0, -1))
            put_back = client.register_script(holding.PUT_BACK)
            for orphan in taken & self._taken_before:
                put_back(keys=holding.PUT_BACK_KEYS, args=[orphan])
            self._taken_before = taken

    def can_consume(self) -> bool:
        """Whether one more message may be taken."""
        held = [message for tag, message in self._delivered.items() if tag not in self._dirty]
        if len(held) < self.channel.batches:
            return True
        held_bytes = sum(len(message.body) for message in held)
        return len(held) < self.prefetch_count and held_bytes < self.channel.batches * _SMALL_BYTES_PER_BATCH

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message that was taken as held."""
        with self.channel.conn_or_acquire() as client:
            arguments = [self.channel.raw_message, delivery_tag, time()]
            client.register_script(holding.HOLD)(keys=holding.HOLD_KEYS, args=arguments)
        virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a held message back, to be the next one taken or, `leftmost`, the last."""
        with self.channel.conn_or_acquire(client) as connected:
            arguments = [tag, "LPUSH" if leftmost else "RPUSH"]
            connected.register_script(holding.RELEASE)(keys=holding.RELEASE_KEYS, args=arguments)


class Channel(kombu_redis.Channel):
    """Takes messages so that each is always in exactly one place."""

    QoS = QoS
    from_transport_options: Any = (*kombu_redis.Channel.from_transport_options, "batches")
    # How many batches the worker works on at a time.
    batches = 1
    # The message being delivered, as it was in the queue.
    raw_message = b""
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
        self.raw_message = raw
        self.connection._deliver(message, keys.QUEUE)  # noqa: SLF001 -- what kombu's own does
        return True

    def _read_answer(self, **options: Any) -> bytes | None:
        try:
            raw: bytes | None = self.client.parse_response(self.client.connection, "BLMOVE", **options)
        except OutOfMemoryError:
            return self._take_at_maxmemory()
        except self.connection_errors:
            # The next poll connects again.
            self.client.connection.disconnect()
            raise
        except ResponseError as error:
            # A server that became a replica, or is still loading: whoever is the master now is asked next.
            self.client.connection.disconnect()
            raise RedisConnectionError(str(error)) from error
        finally:
            self._in_poll = None
        return raw

    def _take_at_maxmemory(self) -> bytes | None:
        with self.conn_or_acquire() as client:
            raw: bytes | None = client.register_script(holding.TAKE)(keys=holding.TAKE_KEYS)
        if raw is None:
            # The next poll is refused at once again.
            sleep(_PAUSE_SECONDS)
        return raw

    def _refuse(self, raw: bytes, error: MalformedMessage) -> None:
        letter = of_raw(raw.decode(errors="backslashreplace"), str(error))
        with self.conn_or_acquire() as client:
            arguments = [raw, letter.key, letter.to_json()]
            client.register_script(holding.REFUSE)(keys=holding.REFUSE_KEYS, args=arguments)


class Transport(kombu_redis.Transport):
    """What `broker_transport` names."""

    Channel = Channel


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same at the master that Sentinels name."""

    from_transport_options: Any = (*kombu_redis.SentinelChannel.from_transport_options, "batches")


class SentinelTransport(kombu_redis.SentinelTransport):
    """What `broker_transport` names when there are Sentinels."""

    Channel = SentinelChannel
