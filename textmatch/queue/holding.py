"""How messages move between the queue and those who hold them: each step whole, or not done at all.

A message is always in exactly one place:

    textmatch.ingest    it waits; taken at the right end
    textmatch:taken     taken, and not yet recorded under a delivery tag
    textmatch:unacked   held, by delivery tag, as it was in the queue; textmatch:unacked-index has since when

A Redis at `maxmemory` refuses transactions and commands that may need memory, so that workers could not even
take what would free some. But it lets a script that has changed something go on. That is why these are
scripts, and each removes the message from where it is before it puts it elsewhere; leases are renewed by
removing them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis

from textmatch.queue import keys


@dataclass(frozen=True)
class Step:
    """A script and the keys it works on; call it with a client and its arguments."""

    keys: tuple[str, ...]
    script: str

    def __call__(self, client: Redis, *arguments: Any) -> Any:
        """Take the step."""
        return client.register_script(self.script)(keys=self.keys, args=arguments)


# ARGV: how many at most, and of how many bytes; the first comes whatever its size.
TAKE = Step(
    (keys.QUEUE, keys.TAKEN),
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

# ARGV: now, then message and delivery tag in turn.
HOLD = Step(
    (keys.TAKEN, keys.UNACKED, keys.UNACKED_INDEX),
    """
    for i = 2, #ARGV, 2 do
      redis.call('LREM', KEYS[1], 1, ARGV[i])
      redis.call('HSET', KEYS[2], ARGV[i + 1], ARGV[i])
      redis.call('ZADD', KEYS[3], ARGV[1], ARGV[i + 1])
    end
    """,
)

# ARGV: now, then delivery tags. What was acknowledged meanwhile must not come back.
RENEW = Step(
    (keys.UNACKED_INDEX,),
    """
    for i = 2, #ARGV do
      if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
        redis.call('ZADD', KEYS[1], ARGV[1], ARGV[i])
      end
    end
    """,
)

# ARGV: delivery tag.
ACKNOWLEDGE = Step(
    (keys.UNACKED, keys.UNACKED_INDEX),
    """
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    """,
)

# ARGV: delivery tag, and RPUSH to be the next or LPUSH to be the last. What was acknowledged is not there.
RELEASE = Step(
    (keys.UNACKED, keys.UNACKED_INDEX, keys.QUEUE),
    """
    local message = redis.call('HGET', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    if message then
      redis.call('HDEL', KEYS[1], ARGV[1])
      redis.call(ARGV[2], KEYS[3], message)
    end
    """,
)

# ARGV: since when at least those that are released must have been silent.
RELEASE_SILENT = Step(
    RELEASE.keys,
    """
    for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])) do
      local message = redis.call('HGET', KEYS[1], tag)
      redis.call('ZREM', KEYS[2], tag)
      if message then
        redis.call('HDEL', KEYS[1], tag)
        redis.call('RPUSH', KEYS[3], message)
      end
    end
    """,
)

# ARGV: messages.
PUT_BACK = Step(
    (keys.TAKEN, keys.QUEUE),
    """
    for _, message in ipairs(ARGV) do
      if redis.call('LREM', KEYS[1], 1, message) == 1 then
        redis.call('RPUSH', KEYS[2], message)
      end
    end
    """,
)

# ARGV: a message that nobody can read, key and letter.
REFUSE = Step(
    (keys.TAKEN, keys.DEAD_LETTERS),
    """
    redis.call('LREM', KEYS[1], 1, ARGV[1])
    redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
    """,
)
