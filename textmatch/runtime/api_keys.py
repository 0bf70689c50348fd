"""API keys: who may call, what each may do, and how much; from a file that may change while we run.

    # name     scopes       key or sha256:HEX of it       tokens per second, if limited
    search-ui  read         sha256:9f86d081884c7d65…      5000
    indexer    read,write   kR3vN0qzXw7Yt5LbH2cM9dFs
    operator   admin        sha256:60303ae22b998861…

A name may have several lines with several keys: that is how a key is replaced without a gap.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from textmatch.errors import ApiKeyInvalid, InvalidInput

_log = logging.getLogger(__name__)

_VARIABLE = "TEXTMATCH_API_KEYS_FILE"
_SHA256_PREFIX = "sha256:"
_MIN_KEY_CHARACTERS = 16
_CHECK_SECONDS = 1.0

Signature = tuple[int, int, int]


class Scope(Enum):
    """What a key may be allowed to do; admin may do everything."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """One line of the file. The key itself is not kept.

    Args:
        digest: SHA-256 of the key.
        tokens_per_second: None: as many as it likes.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    tokens_per_second: float | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether the key may do what needs this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class ApiKeys:
    """The keys of a file. It is read again when it changes; a broken one is logged and changes nothing.

    Raises:
        InvalidInput: the file cannot be read, or a line of it is wrong.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._signature = _signature(path)
        self._keys = parse(_read(path))
        self._checked_at = clock()

    def find(self, presented: str) -> ApiKey:
        """The key that was presented. Takes the same time whichever it is, and if it is none.

        Raises:
            ApiKeyInvalid: it is none of them.
        """
        self._read_again_if_changed()
        digest = hashlib.sha256(presented.encode(errors="surrogateescape")).digest()
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise ApiKeyInvalid("the API key is not valid")
        return found

    def _read_again_if_changed(self) -> None:
        now = self._clock()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        signature = _signature(self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = parse(_read(self._path))
        except InvalidInput as error:
            _log.error("the API keys stay as they were", extra={"error": str(error)})
        else:
            _log.info("API keys read again", extra={"keys": sorted({key.name for key in self._keys})})


def parse(text: str) -> tuple[ApiKey, ...]:
    """The keys in such a file.

    Raises:
        InvalidInput: naming a bad line by its number and never by what it holds.
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
        raise InvalidInput.of_field(_VARIABLE, "the file has no keys; without keys nobody could call")
    return tuple(keys)


def _parse_line(words: list[str]) -> ApiKey:
    if len(words) not in (3, 4):
        raise ValueError("it must be: name, scopes, key or sha256:HEX, and tokens per second if limited")
    name, scopes, secret, *limit = words
    return ApiKey(name, _parse_scopes(scopes), _parse_secret(secret), _parse_limit(*limit))


def _parse_scopes(text: str) -> frozenset[Scope]:
    known = [scope.value for scope in Scope]
    if any(word not in known for word in text.split(",")):
        raise ValueError(f"the scopes must be of {', '.join(known)}, with commas and no spaces between them")
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
        raise ValueError("behind sha256: there must be 64 hexadecimal digits")
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


def _signature(path: Path) -> Signature | None:
    """Changes whenever the file does, also when a link to it is turned; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
