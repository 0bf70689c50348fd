"""Kombu's Redis transport, changed to lose no message when a worker dies.

Kombu takes a message with BRPOP and records it as unacknowledged in a second step. A worker that is killed
between the two loses the message. Here every step moves the message atomically, so it is always in exactly
one place:

    INSTALLATION.ingest    waiting; taken at the right end
    INSTALLATION:taken     taken, not yet recorded under a delivery tag
    INSTALLATION:unacked   held, by delivery tag; INSTALLATION:unacked-index has the time of the last renewal

Prefetch: a worker holds one message of any size for each of its batches (`TEXTMATCH_WORKER_CONCURRENCY`). It
takes more while all held messages are below 64 KiB per batch, up to one message per thread of its pool (64
threads per batch), and combines these small messages into batches.

A worker renews its lease on each held message. The clock of the leases is that of Redis, so that workers
whose clocks differ or jump neither take messages from one another nor keep them. A sweep puts a message
back once the last renewal is `visibility_timeout_seconds` ago. It also puts back a message that two
consecutive sweeps find in `INSTALLATION:taken`. Every worker sweeps when it connects and then every
`sweep_seconds`. A killed worker's messages are therefore taken again after at most

    visibility_timeout_seconds + sweep_seconds        (held messages)
    2 * sweep_seconds                                 (messages taken and not yet recorded)

At `maxmemory`, Redis refuses transactions and commands that may need memory. Workers could then not take the
messages whose completion frees memory. But Redis lets a script continue once it has changed something. The
steps are therefore scripts that remove the message from one place before they add it to another. A renewal
removes the lease first.

A worker whose documents nobody could index takes no messages: `intake` in the transport's options limits how
many it may hold (workers/pauses.py).

Redis may refuse what it is asked for: NOREPLICAS, READONLY after a failover, MISCONF, LOADING, MASTERDOWN,
NOPERM, also within the error of a script. Celery would end the worker. Here every such reply counts as a lost
connection: the worker connects again, to the master of that moment, until Redis agrees.

Messages that are not tasks of textmatch go to the dead letters here, because kombu and Celery would drop
them.

Celery clients push a task with a priority into a list of its own. A sweep moves such messages to the end of
the queue: they are not lost, and their priority means nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from queue import Empty
from time import monotonic, sleep
from typing import Any

import kombu
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from redis.sentinel import Sentinel

from textmatch.errors import InvalidInput
from textmatch.queue import messages
from textmatch.queue.dead_letters import of_raw
from textmatch.queue.keys import Keys
from textmatch.queue.messages import MalformedMessage

_SMALL_BYTES_PER_BATCH = 64 * 1024
_PAUSE_SECONDS = 0.1
_KOMBU = "5.7"
# Options of both channels, next to kombu's own.
_OPTIONS = ("batches", "installation", "intake")


@dataclass(frozen=True)
class LuaScript:
    """A script, and the attributes of Keys that it works on."""

    key_names: tuple[str, ...]
    script: str

    def __call__(self, client: Redis, keys: Keys, *arguments: Any) -> Any:
        """Run the script."""
        return client.register_script(self.script)(keys=self.keys_of(keys), args=arguments)

    def keys_of(self, keys: Keys) -> list[str]:
        """Its keys in an installation."""
        found = (attrgetter(name)(keys) for name in self.key_names)
        return [key for one in found for key in ([one] if isinstance(one, str) else one)]


# ARGV: the most messages, and the most bytes; the first message may be larger.
TAKE = LuaScript(
    ("queue", "taken"),
    """
    local messages, size = {}, 0
    while #messages < tonumber(ARGV[1]) and size < tonumber(ARGV[2]) do
      local message = redis.call('RPOP', KEYS[1])
      if not message then
        break
      end
      redis.call('LPUSH', KEYS[2], message)
      messages[#messages + 1] = message
      size = size + #message
    end
    return messages
    """,
)

# ARGV: messages and delivery tags.
HOLD = LuaScript(
    ("taken", "unacked", "unacked_index"),
    """
    local time = redis.call('TIME')
    local now = time[1] + time[2] / 1000000
    for i = 1, #ARGV, 2 do
      redis.call('LREM', KEYS[1], 1, ARGV[i])
      redis.call('HSET', KEYS[2], ARGV[i + 1], ARGV[i])
      redis.call('ZADD', KEYS[3], now, ARGV[i + 1])
    end
    """,
)

# ARGV: delivery tags. Acknowledged messages must not come back.
RENEW = LuaScript(
    ("unacked_index",),
    """
    local time = redis.call('TIME')
    local now = time[1] + time[2] / 1000000
    for _, tag in ipairs(ARGV) do
      if redis.call('ZREM', KEYS[1], tag) == 1 then
        redis.call('ZADD', KEYS[1], now, tag)
      end
    end
    """,
)

# ARGV: delivery tag.
ACKNOWLEDGE = LuaScript(
    ("unacked", "unacked_index"),
    """
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    """,
)

# ARGV: delivery tag, and RPUSH for the front or LPUSH for the end. An acknowledged message is not found.
RELEASE = LuaScript(
    ("unacked", "unacked_index", "queue"),
    """
    local message = redis.call('HGET', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    if message then
      redis.call('HDEL', KEYS[1], ARGV[1])
      redis.call(ARGV[2], KEYS[3], message)
    end
    """,
)

# ARGV: messages last renewed so many seconds ago are released. A lease from the future is one of a clock
# that was set back since: it begins now.
RELEASE_SILENT = LuaScript(
    RELEASE.key_names,
    """
    local time = redis.call('TIME')
    local now = time[1] + time[2] / 1000000
    for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf')) do
      redis.call('ZREM', KEYS[2], tag)
      redis.call('ZADD', KEYS[2], now, tag)
    end
    for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1])) do
      local message = redis.call('HGET', KEYS[1], tag)
      redis.call('ZREM', KEYS[2], tag)
      if message then
        redis.call('HDEL', KEYS[1], tag)
        redis.call('RPUSH', KEYS[3], message)
      end
    end
    """,
)

# A full Redis would refuse LMOVE.
GATHER = LuaScript(
    ("queue", "priority_queues"),
    """
    for i = 2, #KEYS do
      for _ = 1, 10000 do
        local message = redis.call('RPOP', KEYS[i])
        if not message then
          break
        end
        redis.call('LPUSH', KEYS[1], message)
      end
    end
    """,
)

# ARGV: messages.
PUT_BACK = LuaScript(
    ("taken", "queue"),
    """
    for _, message in ipairs(ARGV) do
      if redis.call('LREM', KEYS[1], 1, message) == 1 then
        redis.call('RPUSH', KEYS[2], message)
      end
    end
    """,
)

# ARGV: an unreadable message, the key of the dead letter, the letter, and when it failed.
REFUSE = LuaScript(
    ("taken", "letters.dead_letters", "letters.dead_letter_times"),
    """
    redis.call('LREM', KEYS[1], 1, ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
    redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
    """,
)


def check_kombu() -> None:
    """Check that the installed kombu is the one whose internals are overridden here.

    Raises:
        InvalidInput: it is another one.
    """
    found = kombu.__version__
    if not found.startswith(f"{_KOMBU}."):
        raise InvalidInput.of_field(
            "kombu", f"is {found}; textmatch needs {_KOMBU}: pip install 'kombu=={_KOMBU}.*'"
        )


class QoS(kombu_redis.QoS):
    """Holds messages, and sweeps those of dead workers back into the queue."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._taken_before: set[bytes] = set()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """One sweep."""
        with self.channel.conn_or_acquire() as client:
            RELEASE_SILENT(client, self.channel.keys, self.visibility_timeout)
            taken = set(client.lrange(self.channel.keys.taken, 0, -1))
            PUT_BACK(client, self.channel.keys, *(taken & self._taken_before))
            self._taken_before = taken
            GATHER(client, self.channel.keys)

    def can_consume(self) -> bool:
        """Whether one more message of any size may be taken."""
        count, size_bytes = self._held()
        limit = self.channel.intake()
        if limit is not None and count >= limit:
            return False
        return count < self.channel.batches or min(self._small(count, size_bytes)) > 0

    def room_for_small(self) -> tuple[int, int]:
        """How many more small messages may be taken, and how many bytes they may have in total."""
        count, size_bytes = self._held()
        more, more_bytes = self._small(count, size_bytes)
        limit = self.channel.intake()
        return (more if limit is None else min(more, limit - count)), more_bytes

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message that the channel has recorded as held."""
        virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        """Remove a settled message.

        It no longer counts as held if Redis refuses: its lease ends, and a worker gets it again.
        """
        try:
            with self.channel.conn_or_acquire() as client:
                ACKNOWLEDGE(client, self.channel.keys, delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Remove a message, or put it back at the end of the queue. Otherwise as `ack`."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            self.restore_by_tag(delivery_tag, leftmost=True)
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a held message back at the front of the queue or, with `leftmost`, at the end."""
        with self.channel.conn_or_acquire(client) as connected:
            RELEASE(connected, self.channel.keys, tag, "LPUSH" if leftmost else "RPUSH")

    def _held(self) -> tuple[int, int]:
        held = [message for tag, message in self._delivered.items() if tag not in self._dirty]
        return len(held), sum(len(message.body) for message in held)

    def _small(self, count: int, size_bytes: int) -> tuple[int, int]:
        return self.prefetch_count - count, self.channel.batches * _SMALL_BYTES_PER_BATCH - size_bytes


class Channel(kombu_redis.Channel):
    """Takes messages in atomic steps."""

    QoS = QoS
    from_transport_options: Any = (*kombu_redis.Channel.from_transport_options, *_OPTIONS)
    # How many batches the worker works on at a time.
    batches = 1
    installation = ""
    # How many messages may be held; None: no limit.
    intake: Any = staticmethod(lambda: None)
    _in_poll: Any
    _brpop_sent_at: Any

    @property
    def keys(self) -> Keys:
        """The keys of the installation."""
        return Keys(self.installation)

    def _size(self, queue: str) -> int:
        """As in kombu, but without a transaction, which a full Redis refuses."""
        with self.conn_or_acquire() as client:
            return int(client.llen(queue))

    def _queue_bind(self, *args: Any) -> None:
        """Consume even if Redis refuses to record the queue. Publishers of textmatch need no record."""
        with suppress(ResponseError):
            super()._queue_bind(*args)  # type: ignore[no-untyped-call]

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Request a message; `_brpop_read` reads the answer."""
        seconds = timeout or self.brpop_timeout
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        keys = self.keys
        self.client.connection.send_command("BLMOVE", keys.queue, keys.taken, "RIGHT", "LEFT", seconds)

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the received message and small ones queued behind it. Raises Empty if there is none."""
        raw = self._read_answer(**options)
        if raw is None:
            raise Empty
        messages = [(one, message) for one in (raw, *self._take_more(raw)) if (message := self._read(one))]
        if not messages:
            raise Empty
        arguments: list[Any] = []
        for one, message in messages:
            arguments += [one, message["properties"]["delivery_tag"]]
        with self.conn_or_acquire() as client:
            HOLD(client, self.keys, *arguments)
        for _, message in messages:
            self.connection._deliver(message, self.keys.queue)  # noqa: SLF001 -- what kombu's own does
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
            # The next poll asks for the master again. Celery connects at once, so that a server which refuses
            # is not asked without a break.
            self.client.connection.disconnect()
            sleep(_PAUSE_SECONDS)
            raise RedisConnectionError(str(error)) from error
        finally:
            self._in_poll = None
        return raw

    def _take_at_maxmemory(self) -> bytes | None:
        taken = self._take(1, 1)
        if taken:
            return taken[0]
        # The next poll would be refused at once.
        sleep(_PAUSE_SECONDS)
        return None

    def _take_more(self, first: bytes) -> list[bytes]:
        count, size_bytes = self.qos.room_for_small()
        if count <= 1 or size_bytes <= len(first):
            return []
        return self._take(count - 1, size_bytes - len(first))

    def _take(self, count: int, size_bytes: int) -> list[bytes]:
        with self.conn_or_acquire() as client:
            taken: list[bytes] = TAKE(client, self.keys, count, size_bytes)
        return taken

    def _read(self, raw: bytes) -> dict[str, Any] | None:
        try:
            return messages.unpack(raw, self.keys.queue)
        except MalformedMessage as error:
            letter = of_raw(raw.decode(errors="backslashreplace"), str(error))
            with self.conn_or_acquire() as client:
                REFUSE(client, self.keys, raw, letter.key, letter.to_json(), letter.failed_at)
            return None


class Transport(kombu_redis.Transport):
    """The value of `broker_transport` for one server."""

    Channel = Channel
    connection_errors = (*kombu_redis.Transport.connection_errors, RedisError)


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The same at the master that the Sentinels name.

    Kombu reads the Sentinels from alternative broker URLs, but uses its own transport for those. Therefore
    they are an option here.
    """

    from_transport_options: Any = (
        *kombu_redis.SentinelChannel.from_transport_options,
        *_OPTIONS,
        "sentinels",
    )
    sentinels: Any = ()
    sentinel_kwargs: Any = None
    master_name = ""

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        options = self._connparams(asynchronous)  # type: ignore[no-untyped-call]
        del options["host"], options["port"]
        manager = Sentinel(self.sentinels, sentinel_kwargs=self.sentinel_kwargs, **options)  # type: ignore[no-untyped-call]
        # Kombu closes the connections of these.
        if asynchronous:
            self._async_sentinel_manager = manager
        else:
            self._sentinel_manager = manager
        return manager.master_for(self.master_name).connection_pool  # type: ignore[no-untyped-call]


class SentinelTransport(kombu_redis.SentinelTransport):
    """The value of `broker_transport` for Sentinels."""

    Channel = SentinelChannel
    connection_errors = Transport.connection_errors
