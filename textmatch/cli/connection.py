"""Where the servers are: options first, then the environment, then the stack on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textmatch.cli.settings import from_environment
from textmatch.client import DEFAULT_ENCODER, DEFAULT_MATCHER, ClientTls, TextMatchClient
from textmatch.io.line_reader import CommandFailed

DEFAULT_DATA_DIR = Path(".textmatch")
DEFAULT_QDRANT_URL = "http://127.0.0.1:6334"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
_STACK_FILE = "stack.json"


@dataclass(frozen=True)
class StackProcess:
    """One process of a stack that `textmatch up` started."""

    name: str
    pid: int
    address: str


@dataclass(frozen=True)
class Stack:
    """What stack.json says; nothing if there is none."""

    matcher: str = ""
    encoder: str = ""
    redis_url: str = ""
    qdrant_url: str = ""
    processes: tuple[StackProcess, ...] = ()


@dataclass(frozen=True)
class Addresses:
    """Where the servers are, and the processes if they are a stack on this machine."""

    matcher: str
    encoder: str
    redis_url: str
    qdrant_url: str
    processes: tuple[StackProcess, ...]
    api_key: str = field(default="", repr=False)
    tls: ClientTls | None = None

    def client(self) -> TextMatchClient:
        """A client of these servers."""
        return TextMatchClient(self.matcher, self.encoder, api_key=self.api_key, tls=self.tls)


def find_addresses(
    data_dir: Path | None, *, matcher: str = "", encoder: str = "", redis_url: str = "", qdrant_url: str = ""
) -> Addresses:
    """Decide for each server: its own option, then --data-dir, the environment, ./.textmatch, the default.

    Raises:
        CommandFailed: --data-dir was given and no stack runs there.
    """
    settings = from_environment()
    chosen = _read_stack(data_dir) if data_dir else Stack()
    if data_dir and not chosen.matcher:
        raise CommandFailed(f"no stack runs in {data_dir}; start it with: textmatch up --data-dir {data_dir}")
    nearby = chosen if data_dir else _read_stack(DEFAULT_DATA_DIR)
    matcher = matcher or chosen.matcher or settings.matcher_target or nearby.matcher or DEFAULT_MATCHER
    return Addresses(
        matcher=matcher,
        encoder=encoder or chosen.encoder or settings.encoder_target or nearby.encoder or DEFAULT_ENCODER,
        redis_url=(
            redis_url or chosen.redis_url or settings.redis_url or nearby.redis_url or DEFAULT_REDIS_URL
        ),
        qdrant_url=(
            qdrant_url or chosen.qdrant_url or settings.qdrant_url or nearby.qdrant_url or DEFAULT_QDRANT_URL
        ),
        processes=nearby.processes if matcher == nearby.matcher else (),
        api_key=settings.api_key,
        tls=settings.client_tls(),
    )


def _read_stack(data_dir: Path) -> Stack:
    path = data_dir / _STACK_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple(StackProcess(**process) for process in content["processes"])
        return Stack(
            content["matcher"], content["encoder"], content["redis_url"], content["qdrant_url"], processes
        )
    except FileNotFoundError:
        return Stack()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{path} cannot be read: {error}") from error
