"""Dead letters: documents that cannot be indexed as they are, and unreadable messages, with the reason.

A Redis hash by document id, or by a generated id for an unreadable message, of JSON:

    {"document": {...} or null, "accepted_us": when it was accepted, "raw": the unreadable message or null,
     "is_argument": whether `raw` is only the argument of a task, "stamp": of that task or null,
     "reason": "TEXT_TOO_LARGE", "error": a description for people, "failed_at": seconds since 1970}

A second hash has the documents' versions, and a sorted set the times of all failures, because scripts must
not parse JSON from unknown senders.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from textmatch.collection_config import CollectionConfig
from textmatch.documents import Document
from textmatch.errors import InvalidInput
from textmatch.queue.keys import LetterKeys
from textmatch.queue.messages import Stamp, document_as_json, document_from_json, stamp_from_fields
from textmatch.queue.redis_client import flattened, translated_errors
from textmatch.time_slices import in_slices

if TYPE_CHECKING:
    from textmatch.queue.producer import Producer

MALFORMED = "MALFORMED"

_NUMBER = re.compile(r"\d{1,15}(\.\d{1,20})?(e[+-]\d{1,3})?", re.ASCII)

# A letter never replaces one of a newer version of the document.
# KEYS of all scripts: letters, versions, times. ARGV: keys, versions (0 for no document), times and letters.
_ADD = """
for i = 1, #ARGV, 4 do
  local key, version = ARGV[i], ARGV[i + 1]
  if tonumber(redis.call('HGET', KEYS[2], key) or 0) <= tonumber(version) then
    redis.call('ZADD', KEYS[3], ARGV[i + 2], key)
    redis.call('HSET', KEYS[1], key, ARGV[i + 3])
    if version ~= '0' then
      redis.call('HSET', KEYS[2], key, version)
    end
  end
end
"""

# ARGV: document ids and versions. Returns how many letters were removed.
_CLEAR = """
local cleared = 0
for i = 1, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known and tonumber(known) <= tonumber(ARGV[i + 1]) then
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('ZREM', KEYS[3], ARGV[i])
    cleared = cleared + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return cleared
"""

# ARGV: keys. Returns how many letters there were.
_DROP = """
local dropped = 0
for _, key in ipairs(ARGV) do
  redis.call('HDEL', KEYS[2], key)
  redis.call('ZREM', KEYS[3], key)
  dropped = dropped + redis.call('HDEL', KEYS[1], key)
end
return dropped
"""

# ARGV: key and the letter that was read.
_DROP_IF_SAME = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
end
"""


@dataclass(frozen=True)
class DeadLetter:
    """Either a `document`, whose id is the `key`, or the `raw` text of an unreadable message.

    Args:
        reason: an error reason without prefix ("TEXT_TOO_LARGE"), or "MALFORMED".
        failed_at: seconds since 1970.
        is_argument: `raw` is the argument of a task, which has this stamp; otherwise it is a whole message.
    """

    key: str
    reason: str
    error: str
    failed_at: float
    document: Document | None = None
    raw: str | None = None
    is_argument: bool = False
    stamp: Stamp | None = None

    def to_json(self) -> str:
        """The value in the hash."""
        return json.dumps(
            {
                "document": document_as_json(self.document) if self.document else None,
                "accepted_us": self.document.accepted_us if self.document else 0,
                "raw": self.raw,
                "is_argument": self.is_argument,
                "stamp": self.stamp.to_fields() if self.stamp else None,
                "reason": self.reason,
                "error": self.error,
                "failed_at": self.failed_at,
            }
        )

    @classmethod
    def from_json(cls, key: str, text: str) -> DeadLetter:
        """The reverse."""
        content = json.loads(text)
        accepted_us = content.pop("accepted_us")
        if content["document"] is not None:
            content["document"] = replace(document_from_json(content["document"]), accepted_us=accepted_us)
        content["stamp"] = stamp_from_fields(content["stamp"] or {})
        return cls(key=key, **content)


def of_document(document: Document, reason: str, error: str) -> DeadLetter:
    """A letter for a document that failed now."""
    return DeadLetter(document.id, reason, error, time.time(), document=document)


def of_raw(raw: str, error: str) -> DeadLetter:
    """A letter for an unreadable message; the same message always has the same key."""
    digest = hashlib.blake2b(raw.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return DeadLetter(f"malformed-{digest}", MALFORMED, error, time.time(), raw=raw)


def of_argument(argument: str, stamp: Stamp | None, error: str) -> DeadLetter:
    """A letter for an unreadable argument of a task; the same argument always has the same key."""
    return replace(of_raw(argument, error), is_argument=True, stamp=stamp)


@dataclass(frozen=True, order=True)
class LetterPosition:
    """A place in the list of letters: the oldest failure comes first, and keys decide between equal times."""

    failed_at: float
    key: str

    def to_token(self) -> str:
        """The place as a page token: "1764495000.25:some id"."""
        return f"{self.failed_at!r}:{self.key}"

    @classmethod
    def from_token(cls, token: str) -> LetterPosition:
        """The reverse; "" is before the first letter.

        Raises:
            InvalidInput: the token is not valid.
        """
        if not token:
            return cls(0.0, "")
        failed_at, _, key = token.partition(":")
        # Numbers of Python may have spaces, underscores and other digits than 0 to 9.
        if not _NUMBER.fullmatch(failed_at):
            raise InvalidInput.of_field("page_token", "is not one that a page has returned")
        return cls(float(failed_at), key)


class DeadLetters:
    """The letters of one collection, or the unreadable messages of the installation.

    Every method raises DependencyUnavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, keys: LetterKeys) -> None:
        self._redis = redis
        self._letters = keys.dead_letters
        self._versions = keys.dead_letter_versions
        self._times = keys.dead_letter_times
        self._keys = [keys.dead_letters, keys.dead_letter_versions, keys.dead_letter_times]
        self._add = redis.register_script(_ADD)
        self._clear = redis.register_script(_CLEAR)
        self._drop = redis.register_script(_DROP)
        self._drop_if_same = redis.register_script(_DROP_IF_SAME)

    async def add(self, letters: Sequence[DeadLetter]) -> None:
        """Add letters; the newest version of a document stays."""
        if not letters:
            return
        entries = [
            (one.key, one.document.version if one.document else 0, repr(one.failed_at), one.to_json())
            for one in letters
        ]
        with translated_errors():
            await self._add(keys=self._keys, args=flattened(entries))

    async def clear(self, versions: Mapping[str, int]) -> int:
        """Remove the letters of documents that are settled up to these versions; returns how many."""
        with translated_errors():
            return int(await self._clear(keys=self._keys, args=flattened(versions.items())))

    async def count(self) -> int:
        """The number of letters."""
        with translated_errors():
            return await self._redis.hlen(self._letters)

    async def get(self, key: str) -> DeadLetter | None:
        """The letter under a document's id or a generated id."""
        with translated_errors():
            text = await self._redis.hget(self._letters, key)
        return None if text is None else DeadLetter.from_json(key, str(text))

    async def versions(self, document_ids: Sequence[str]) -> dict[str, int]:
        """The versions of those of these documents that have a letter."""
        if not document_ids:
            return {}
        with translated_errors():
            found = await self._redis.hmget(self._versions, document_ids)
        return {one: int(version) for one, version in zip(document_ids, found, strict=True) if version}

    async def entries(self, limit: int) -> list[DeadLetter]:
        """Up to `limit` letters, oldest failure first."""
        page = await self.page(LetterPosition(0.0, ""), limit)
        return [letter for _, letter in page if letter is not None]

    async def page(self, after: LetterPosition, limit: int) -> list[tuple[LetterPosition, DeadLetter | None]]:
        """Up to `limit` letters after a place, in the order of their places; fewer at the end only.

        None stands for a letter that was removed at the same time.
        """
        found: list[LetterPosition] = []
        offset = 0
        with translated_errors():
            while len(found) < limit:
                members: list[Any] = await self._redis.zrange(
                    self._times,
                    repr(after.failed_at),
                    "+inf",
                    byscore=True,
                    withscores=True,
                    offset=offset,
                    num=limit,
                )
                positions = [LetterPosition(float(at), str(key)) for key, at in members]
                found += [one for one in positions if one > after]
                offset += len(members)
                if len(members) < limit:
                    break
            if not found:
                return []
            # Redis sorts keys of equal times by their bytes, as Python sorts strings: by code points.
            chosen = found[:limit]
            texts = await self._redis.hmget(self._letters, [one.key for one in chosen])
        return [
            (one, None if text is None else DeadLetter.from_json(one.key, str(text)))
            async for one, text in in_slices(zip(chosen, texts, strict=True))
        ]

    async def drop(self, letter_keys: Iterable[str]) -> int:
        """Delete letters; returns how many there were."""
        with translated_errors():
            return int(await self._drop(keys=self._keys, args=list(letter_keys)))

    async def replay(
        self, letter_keys: Iterable[str], producer: Producer, collection: CollectionConfig
    ) -> int:
        """Put documents and messages into the queue again; returns how many.

        Documents keep their versions and times of acceptance. What fails again returns to the dead letters
        with its new reason.

        Args:
            collection: the one that the documents belong to.
        """
        replayed = 0
        for key in letter_keys:
            letter = await self.get(key)
            if letter is None:
                continue
            if letter.document is not None:
                await producer.replay(collection, letter.document)
            elif letter.is_argument:
                await producer.publish([letter.raw or ""], letter.stamp)
            else:
                await producer.push(letter.raw or "")
            with translated_errors():
                await self._drop_if_same(keys=self._keys, args=[key, letter.to_json()])
            replayed += 1
        return replayed
