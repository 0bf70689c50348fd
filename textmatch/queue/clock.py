"""The one clock of a collection, in Redis. All writes and deletes that are accepted get their time from it.

    accepted = max(TIME of Redis in microseconds, last accepted + 1)

The scripts of producer.py and tombstones.py read it in the step that has the effect. The order of
acceptance is therefore the same for all matchers, even if their own clocks differ, and also if the clock of
the Redis server is set back. The time of acceptance is the version of a document that comes without one.

A request that is tried again keeps what its first try was given: `Request` names it.
"""

from __future__ import annotations

from dataclasses import dataclass

# To be put in front of scripts.
#   tick(clock, count): reserves `count` times, and returns the first.
#   text(number): a whole number as Redis and JSON read it.
#   tombstones_of(registry, ids): versions and times of acceptance of the tombstones of ids, in their order;
#   0: none.
CLOCK_LUA = """
local MAX_VERSION = 9007199254740991

local function text(number)
  return string.format('%.0f', number)
end

local function tick(clock, count)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local first = math.max(now, tonumber(redis.call('GET', clock) or 0) + 1)
  redis.call('SET', clock, text(first + count - 1))
  return first
end

local function tombstones_of(registry, ids)
  local versions, accepted = {}, {}
  for i = 1, #ids do
    versions[i], accepted[i] = 0, 0
  end
  for _, day in ipairs(redis.call('ZRANGE', registry, 0, -1)) do
    for i, value in ipairs(redis.call('HMGET', registry .. ':' .. day, unpack(ids))) do
      if value then
        local version, at = string.match(value, '(%d+) (%d+)')
        versions[i] = math.max(versions[i], tonumber(version))
        accepted[i] = math.max(accepted[i], tonumber(at))
      end
    end
  end
  return versions, accepted
end
"""


@dataclass(frozen=True)
class Request:
    """A request that may be tried again.

    Args:
        id: a UUID that all its tries have in common; empty: each try is a new request.
        ttl_seconds: how long it is remembered from now on; 0 if it has no id.
    """

    id: str = ""
    ttl_seconds: int = 0


UNREPEATED = Request()
