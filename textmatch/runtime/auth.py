"""API keys: which methods and collections a caller may use, and its rate limit.

Keys are read from a file that may change while the process runs:

    # name     scopes       key or sha256:HEX of it       tokens per second, collections, if limited
    search-ui  read         sha256:9f86d081884c7d65…      5000  collections=faq,manuals
    indexer    read,write   kR3vN0qzXw7Yt5LbH2cM9dFs      collections=faq
    operator   admin        sha256:60303ae22b998861…

A name may have several lines with different keys, which allows a key to be replaced without downtime. Health
and reflection need no key: they reveal only the names of services.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from textmatch.collection_config import DEFAULT_COLLECTION, name_violation
from textmatch.errors import (
    ApiKeyInvalid,
    ApiKeyMissing,
    CollectionDenied,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    TextMatchError,
)
from textmatch.runtime import logs
from textmatch.runtime.file_watch import FileWatch
from textmatch.runtime.interceptors import Interceptor, wrap_handler

if TYPE_CHECKING:
    from textmatch.runtime.interceptors import Handler

_log = logging.getLogger(__name__)

_VARIABLE = "TEXTMATCH_API_KEYS_FILE"
_SHA256_PREFIX = "sha256:"
_MIN_KEY_CHARACTERS = 16
_CHECK_SECONDS = 1.0

_BYTES_PER_TOKEN = 4
# What a Match costs in addition to its request: a pair is about fifty tokens that the cross-encoder reads.
_TOKENS_PER_CANDIDATE = 1
_TOKENS_PER_PAIR = 50
# What a collection in a list costs: it is looked up in Qdrant.
_TOKENS_PER_COLLECTION = 50
# What a document or dead letter in a page costs, and one that is queued again.
_TOKENS_PER_ITEM = 1
# Of documents that match a filter.
_TOKENS_PER_COUNT = 50
_BURST_SECONDS = 10.0

_COLLECTIONS_WORD = "collections="
_COLLECTION_PROTO = "collection_service.proto"
# The collections that the caller of the running call may use; None: all.
_caller_collections: ContextVar[frozenset[str] | None] = ContextVar("caller_collections", default=None)

AUTHORIZATION_METADATA_KEY = "authorization"
_SCHEME = "bearer "


class Scope(Enum):
    """What a key allows; admin allows everything."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


# Methods that are not listed need the scope admin.
SCOPES: Mapping[str, Scope] = {
    "/textmatch.v1.EncoderService/Encode": Scope.READ,
    "/textmatch.v1.EncoderService/EncodeStream": Scope.READ,
    "/textmatch.v1.EncoderService/Score": Scope.READ,
    "/textmatch.v1.EncoderService/GetModels": Scope.READ,
    "/textmatch.v1.MatcherService/Match": Scope.READ,
    "/textmatch.v1.MatcherService/BatchMatch": Scope.READ,
    "/textmatch.v1.MatcherService/FindDuplicates": Scope.READ,
    "/textmatch.v1.MatcherService/GetDocument": Scope.READ,
    "/textmatch.v1.MatcherService/GetDocuments": Scope.READ,
    "/textmatch.v1.MatcherService/ListDocuments": Scope.READ,
    "/textmatch.v1.MatcherService/CountDocuments": Scope.READ,
    "/textmatch.v1.MatcherService/GetIngestStatus": Scope.READ,
    # Those of a collection. The unreadable messages of the installation need admin.
    "/textmatch.v1.MatcherService/ListDeadLetters": Scope.READ,
    "/textmatch.v1.MatcherService/ReplayDeadLetters": Scope.WRITE,
    "/textmatch.v1.MatcherService/DropDeadLetters": Scope.WRITE,
    "/textmatch.v1.MatcherService/IngestDocuments": Scope.WRITE,
    # By ids. A delete by a filter needs admin, because one call can empty the index.
    "/textmatch.v1.MatcherService/DeleteDocuments": Scope.WRITE,
    "/textmatch.v1.CollectionService/GetCollection": Scope.READ,
    "/textmatch.v1.CollectionService/ListCollections": Scope.READ,
    "/textmatch.v1.CollectionService/CreateCollection": Scope.ADMIN,
    "/textmatch.v1.CollectionService/DeleteCollection": Scope.ADMIN,
    "/textmatch.v1.CollectionService/AdoptCollection": Scope.ADMIN,
}


@dataclass(frozen=True)
class ApiKey:
    """One line of the file. The key itself is not kept.

    Args:
        digest: SHA-256 of the key.
        tokens_per_second: None: no limit.
        collections: None: all. The encoder knows no collections, so any key may call it.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    tokens_per_second: float | None = None
    collections: frozenset[str] | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether the key allows calls that need this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class ApiKeys:
    """The keys of a file, which is read again when it changes. A broken file is logged; the old keys stay.

    Raises:
        InvalidInput: the file cannot be read, or a line is invalid.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._watch = FileWatch([path], _CHECK_SECONDS, clock)
        self._keys = parse(_read(path))

    def find(self, presented: str) -> ApiKey:
        """Find the key that a caller sent. Takes the same time for every key, known or unknown.

        Raises:
            ApiKeyInvalid: the key is unknown.
        """
        self._reload_if_changed()
        digest = hashlib.sha256(presented.encode(errors="surrogateescape")).digest()
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise ApiKeyInvalid("the API key is not valid")
        return found

    def _reload_if_changed(self) -> None:
        if not self._watch.has_changed():
            return
        try:
            self._keys = parse(_read(self._path))
        except InvalidInput as error:
            _log.error("API keys not reloaded, the old ones stay in force", extra={"error": str(error)})
        else:
            _log.info("API keys reloaded", extra={"keys": sorted({key.name for key in self._keys})})


def parse(text: str) -> tuple[ApiKey, ...]:
    """The keys in such a file.

    Raises:
        InvalidInput: naming a bad line by its number, never by its content.
    """
    keys: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            keys.append(_parse_line(words))
        except ValueError as error:
            raise InvalidInput.of_field(_VARIABLE, f"line {number}: {error}") from None
    if not keys:
        raise InvalidInput.of_field(_VARIABLE, "the file has no keys, so every call would be refused")
    return tuple(keys)


def _parse_line(words: list[str]) -> ApiKey:
    collections = None
    if words[-1].startswith(_COLLECTIONS_WORD):
        *words, last = words
        collections = _parse_collections(last.removeprefix(_COLLECTIONS_WORD))
    if len(words) not in (3, 4):
        raise ValueError(
            "it must have a name, scopes, a key or sha256:HEX, and optionally tokens per second and"
            " collections=NAME,NAME"
        )
    name, scopes, secret, *limit = words
    return ApiKey(name, _parse_scopes(scopes), _parse_secret(secret), _parse_limit(*limit), collections)


def _parse_collections(text: str) -> frozenset[str]:
    names = text.split(",")
    if any(name_violation("collections", name) for name in names):
        raise ValueError("collections= must be followed by names of collections, separated by commas")
    return frozenset(names)


def _parse_scopes(text: str) -> frozenset[Scope]:
    known = [scope.value for scope in Scope]
    if any(word not in known for word in text.split(",")):
        raise ValueError(f"the scopes must be among {', '.join(known)}, separated by commas without spaces")
    return frozenset(map(Scope, text.split(",")))


def _parse_secret(text: str) -> bytes:
    if not text.startswith(_SHA256_PREFIX):
        if len(text) < _MIN_KEY_CHARACTERS:
            raise ValueError(f"the key is shorter than {_MIN_KEY_CHARACTERS} characters")
        return hashlib.sha256(text.encode()).digest()
    try:
        digest = bytes.fromhex(text.removeprefix(_SHA256_PREFIX))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("sha256: must be followed by 64 hexadecimal digits")
    return digest


def _parse_limit(text: str = "") -> float | None:
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("the tokens per second must be a whole number above 0")
    return float(text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInput.of_field(_VARIABLE, f"{path} cannot be read: {reason}") from None


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimits:
    """A token bucket of ten seconds' allowance for each name. Keys of the same name share it.

    A request is admitted while the bucket is not empty, and may overdraw it. Therefore a request of any size
    can be admitted, and on average no caller exceeds its allowance.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def charge(self, key: ApiKey, size_bytes: int) -> None:
        """Take the cost of a request from the bucket: one token per four bytes.

        Raises:
            Overloaded: the bucket is empty; with the time until it is not.
        """
        rate = key.tokens_per_second
        if rate is None:
            return
        bucket = self._refilled(key.name, rate)
        if bucket.tokens <= 0:
            message = f"the API key {key.name} has used up its {rate:,.0f} tokens per second"
            raise Overloaded(message, retry_delay_seconds=(1 - bucket.tokens) / rate)
        bucket.tokens -= 1 + size_bytes / _BYTES_PER_TOKEN

    def charge_work(self, key: ApiKey, tokens: float) -> None:
        """Take the cost of work that is done from the bucket, which may be overdrawn."""
        if key.tokens_per_second is not None:
            self._refilled(key.name, key.tokens_per_second).tokens -= tokens

    def _refilled(self, name: str, rate: float) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(rate * _BURST_SECONDS, now))
        refilled = bucket.tokens + (now - bucket.filled_at) * rate
        bucket.tokens, bucket.filled_at = min(refilled, rate * _BURST_SECONDS), now
        return bucket


# How the running call charges its key; None without API keys.
_charge_work: ContextVar[Callable[[float], None] | None] = ContextVar("charge_work", default=None)


def charge_match(candidate_count: int, scored_count: int) -> None:
    """Charge the key of the running call for the candidates and pairs of one Match."""
    _charge(candidate_count * _TOKENS_PER_CANDIDATE + scored_count * _TOKENS_PER_PAIR)


def charge_collections(count: int) -> None:
    """Charge the key of the running call for a list of so many collections."""
    _charge(count * _TOKENS_PER_COLLECTION)


def charge_items(count: int) -> None:
    """Charge the key of the running call for so many documents or dead letters that it read or changed."""
    _charge(count * _TOKENS_PER_ITEM)


def charge_count() -> None:
    """Charge the key of the running call for a count of documents."""
    _charge(_TOKENS_PER_COUNT)


def _charge(tokens: float) -> None:
    if charge := _charge_work.get():
        charge(tokens)


class AuthInterceptor(Interceptor):
    """Refuses calls without a valid key before the request is read. Goes inside CallInterceptor."""

    def __init__(self, keys: ApiKeys, limits: RateLimits) -> None:
        self._keys = keys
        self._limits = limits

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        method = details.method
        try:
            key = self._keys.find(_presented(details.invocation_metadata))
            _require(key, SCOPES.get(method, Scope.ADMIN), method)
        except TextMatchError as error:
            return _refusal(error)

        def admit(request: Any) -> Any:
            _require_collection(key, request, method)
            if request.DESCRIPTOR.name == "DeleteDocumentsRequest" and request.HasField("filter"):
                _require(key, Scope.ADMIN, method)
            if getattr(request, "unreadable", False):
                _require(key, Scope.ADMIN, method)
                _require_all_collections(key)
            self._limits.charge(key, _size_bytes(request))
            return request

        @asynccontextmanager
        async def around(_: Any) -> AsyncIterator[None]:
            logs.api_key_name.set(key.name)
            _caller_collections.set(key.collections)
            _charge_work.set(lambda tokens: self._limits.charge_work(key, tokens))
            yield

        return wrap_handler(handler, around=around, map_request=admit)


def allows_collection(name: str) -> bool:
    """Whether the caller of the running call may use a collection; for answers that list collections."""
    allowed = _caller_collections.get()
    return allowed is None or name in allowed


def _collections_of(request: Any) -> list[str]:
    """The collections that a request is about."""
    fields = request.DESCRIPTOR.fields_by_name
    if request.DESCRIPTOR.file.name.endswith(_COLLECTION_PROTO):
        named = request.collection if "collection" in fields else request
        name: str | None = getattr(named, "name", None)
    else:
        name = request.collection if "collection" in fields else None
    names = [] if name is None else [name or DEFAULT_COLLECTION]
    if "against" in fields and request.against:
        names.append(request.against)
    return names


def _require_collection(key: ApiKey, request: Any, method: str) -> None:
    for name in _collections_of(request):
        if key.collections is not None and name not in key.collections:
            values = {"key": key.name, "method": method, "collection": name}
            _log.warning("collection not allowed", extra=values)
            raise CollectionDenied(f"the API key {key.name} must not use this collection")


def _require_all_collections(key: ApiKey) -> None:
    """Unreadable messages may have been meant for any collection."""
    if key.collections is not None:
        raise CollectionDenied(f"the API key {key.name} must not use all collections")


def _presented(metadata: Any) -> str:
    for name, value in metadata or ():
        if (
            name == AUTHORIZATION_METADATA_KEY
            and isinstance(value, str)
            and value.lower().startswith(_SCHEME)
        ):
            return value[len(_SCHEME) :].strip()
    raise ApiKeyMissing("an API key is needed, as metadata: authorization: Bearer KEY")


def _require(key: ApiKey, scope: Scope, method: str) -> None:
    if key.allows(scope):
        return
    _log.warning("scope missing", extra={"key": key.name, "method": method, "scope": scope.value})
    raise PermissionDenied(f"the API key {key.name} lacks the scope {scope.value}")


def _size_bytes(request: Any) -> int:
    """The size of the texts that a model or the index processes. Embeddings do not count.

    The query of a ScoreRequest is read again with each text.
    """
    size_bytes = int(request.ByteSize())
    if request.DESCRIPTOR.name == "ScoreRequest":
        repeats = max(0, len(request.texts) - 1)
        size_bytes += repeats * len(request.query.encode()) - len(request.embeddings)
    return size_bytes


def _refusal(error: TextMatchError) -> Handler:
    """A handler for methods of any arity that reads no request."""

    async def refuse(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        raise error
        yield

    return grpc.stream_stream_rpc_method_handler(refuse)
