"""How messages move between the queue and those who hold them: each step whole, or not done at all.

A message is always in exactly one place:

    textmatch.ingest    it waits; taken at the right end
    textmatch:taken     taken, and not yet recorded under a delivery tag
    textmatch:unacked   held, by delivery tag, as it was in the queue; textmatch:unacked-index has since when

A Redis at `maxmemory` refuses commands that may need memory, so that workers could not even take what would
free some. But it lets a script that has changed something go on. That is why each script here removes the
message from where it is before it puts it elsewhere, and why leases are renewed by removing them first.
"""

from __future__ import annotations

from textmatch.queue import keys

TAKE_KEYS = [keys.QUEUE, keys.TAKEN]
TAKE = """
local message = redis.call('RPOP', KEYS[1])
if message then
  redis.call('LPUSH', KEYS[2], message)
end
return message
"""

HOLD_KEYS = [keys.TAKEN, keys.UNACKED, keys.UNACKED_INDEX]
# ARGV: message, delivery tag, now.
HOLD = """
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
"""

RELEASE_KEYS = [keys.UNACKED, keys.UNACKED_INDEX, keys.QUEUE]
# ARGV: delivery tag, and RPUSH to be the next or LPUSH to be the last. What was acknowledged is not there.
RELEASE = """
local message = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if message then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call(ARGV[2], KEYS[3], message)
end
"""

PUT_BACK_KEYS = [keys.TAKEN, keys.QUEUE]
# ARGV: a message.
PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('RPUSH', KEYS[2], ARGV[1])
end
"""

RENEW_KEYS = [keys.UNACKED_INDEX]
# ARGV: now, then delivery tags. What was acknowledged meanwhile must not come back.
RENEW = """
for i = 2, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[1], ARGV[1], ARGV[i])
  end
end
"""

REFUSE_KEYS = [keys.TAKEN, keys.DEAD_LETTERS]
# ARGV: a message that nobody can read, key and letter.
REFUSE = """
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
"""
