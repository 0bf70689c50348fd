"""Options that several commands share, the addresses that result from them, and the file of --output."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from textmatch.cli.errors import CommandFailed, message_of
from textmatch.cli.settings import CliSettings
from textmatch.client import (
    DEFAULT_ENCODER,
    DEFAULT_MATCHER,
    ClientTls,
    Filter,
    TextMatchClient,
    Truncation,
)
from textmatch.console import json_line
from textmatch.errors import InvalidInput, TextMatchError
from textmatch.filter_syntax import parse
from textmatch.runtime.settings import DEFAULT_INSTALLATION, load

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from textmatch.collection_store import Collection
    from textmatch.queue.keys import Keys


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
class StackFile:
    """The content of stack.json; empty if there is no such file."""

    matcher: str = ""
    encoder: str = ""
    redis_url: str = ""
    qdrant_url: str = ""
    installation: str = ""
    processes: tuple[StackProcess, ...] = ()


@dataclass(frozen=True)
class Addresses:
    """Addresses of the servers, and the collection that is meant.

    `processes` is empty unless they are a stack on this machine.
    """

    matcher: str
    encoder: str
    redis_url: str
    qdrant_url: str
    installation: str
    collection: str
    processes: tuple[StackProcess, ...]
    settings: CliSettings = field(repr=False)
    tls: ClientTls | None = None

    def client(self) -> TextMatchClient:
        """A client of matcher and encoder."""
        return TextMatchClient(
            self.matcher,
            self.encoder,
            api_key=self.settings.api_key,
            tls=self.tls,
            collection=self.collection,
        )

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[tuple[Redis, Keys]]:
        """Redis and the keys in it, for commands that do not go through the matcher."""
        # Imported here, because most commands do not need the packages of queue and index.
        from textmatch.queue.keys import Keys
        from textmatch.queue.redis_client import connect

        async with connect(self.redis_url) as redis:
            yield redis, Keys(self.installation)

    @asynccontextmanager
    async def opened_collection(self) -> AsyncIterator[Collection]:
        """The collection in Redis and Qdrant, for commands that do not go through the matcher.

        Raises:
            CollectionNotFound: there is none of that name.
            InvalidInput: a setting is not valid.
        """
        from textmatch.collection_store import CollectionStore
        from textmatch.index.client import connect

        settings = self.settings
        qdrant = connect(
            self.qdrant_url,
            settings.qdrant_api_key,
            ca=settings.qdrant_ca,
            cert=settings.tls_cert,
            key=settings.tls_key,
        )
        try:
            async with self.redis() as (redis, keys):
                store = CollectionStore(redis, qdrant, keys)
                try:
                    yield await store.get(self.collection)
                finally:
                    store.close()
        finally:
            await qdrant.close()


def find_addresses(
    data_dir: Path | None,
    *,
    matcher: str = "",
    encoder: str = "",
    redis_url: str = "",
    qdrant_url: str = "",
    collection: str = "",
) -> Addresses:
    """Addresses from the options, --data-dir, the environment, ./.textmatch or the defaults, in this order.

    Raises:
        CommandFailed: --data-dir was given and no stack runs there.
    """
    settings = load(CliSettings)
    chosen = _read_stack(data_dir) if data_dir else StackFile()
    if data_dir and not chosen.matcher:
        raise CommandFailed(f"no stack runs in {data_dir}; start it with: textmatch up --data-dir {data_dir}")
    local = chosen if data_dir else _read_stack(DEFAULT_DATA_DIR)
    matcher = matcher or chosen.matcher or settings.matcher_target or local.matcher or DEFAULT_MATCHER
    return Addresses(
        matcher=matcher,
        encoder=encoder or chosen.encoder or settings.encoder_target or local.encoder or DEFAULT_ENCODER,
        redis_url=redis_url or chosen.redis_url or settings.redis_url or local.redis_url or DEFAULT_REDIS_URL,
        qdrant_url=(
            qdrant_url or chosen.qdrant_url or settings.qdrant_url or local.qdrant_url or DEFAULT_QDRANT_URL
        ),
        installation=(
            chosen.installation or settings.installation or local.installation or DEFAULT_INSTALLATION
        ),
        collection=collection or settings.collection,
        processes=local.processes if matcher == local.matcher else (),
        settings=settings,
        tls=settings.client_tls(),
    )


def _read_stack(data_dir: Path) -> StackFile:
    path = data_dir / _STACK_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple(StackProcess(**process) for process in content["processes"])
        return StackFile(
            matcher=content["matcher"],
            encoder=content["encoder"],
            redis_url=content["redis_url"],
            qdrant_url=content["qdrant_url"],
            installation=content["installation"],
            processes=processes,
        )
    except FileNotFoundError:
        return StackFile()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{path} cannot be read: {error}") from error


Matcher = Annotated[str, typer.Option("--matcher", help="Address of the matcher, host:port.")]
Encoder = Annotated[str, typer.Option("--encoder", help="Address of the encoder, host:port.")]
QdrantUrl = Annotated[str, typer.Option("--qdrant-url", help="URL of Qdrant's gRPC port: http://host:6334.")]
RedisUrl = Annotated[str, typer.Option("--redis-url", help="URL of Redis: redis://host:6379/0.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of the local stack. Default: .textmatch, if a stack runs there."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue FILE of --output after an interruption.")]
CollectionName = Annotated[
    str,
    typer.Option(
        "--collection",
        metavar="NAME",
        help="Name of the collection. Default: default.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Delete without asking.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
Truncate = Annotated[
    Truncation | None,
    typer.Option(
        "--truncate",
        help="The part of a long text that is not read; error: refuse it. Default: as the model does.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="FILTER",
        help='Filter by attributes and ids: \'module = "os" and published >= "2024-01-31"\'.',
    ),
]


def parse_where(where: str | None) -> Filter | None:
    """The filter of `--where`; None if the option is not given.

    Raises:
        typer.BadParameter: it cannot be parsed; it is empty, for example.
    """
    if where is None:
        return None
    try:
        return parse(where)
    except InvalidInput as error:
        raise typer.BadParameter(error.violations[0].description, param_hint="--where") from error


def open_output(output: Path | None, *, resume: bool) -> AbstractContextManager[OutputFile | None]:
    """The file of `--output`; None if the option is not given.

    Raises:
        typer.BadParameter: there is nothing that `--resume` could continue.
        CommandFailed: as `OutputFile`.
    """
    if output is not None:
        return OutputFile(output, resume=resume)
    if resume:
        raise typer.BadParameter("--resume needs --output FILE")
    return nullcontext()


def confirm(question: str) -> None:
    """Ask on stderr, because stdout may be piped on.

    Raises:
        CommandFailed: the answer is not yes, or there is none.
    """
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandFailed("nothing was deleted; --yes deletes without asking")


class OutputFile:
    """The JSON lines of `--output`. A crash of this process loses none that was added.

    Args:
        resume: continue the file if it exists.

    Raises:
        CommandFailed: the file has lines and is not to be continued, or it cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._has_added = False
        if not resume and path.exists() and path.stat().st_size:
            raise CommandFailed(f"{path} exists; continue it with --resume, or delete it")
        try:
            self._file = path.open("r+b" if path.exists() else "w+b")
        except OSError as error:
            raise CommandFailed(f"{path} cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def lines(self) -> Iterator[bytes]:
        """The lines of an earlier run. At the end, an incomplete last line is dropped."""
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            yield line
        self._file.seek(end)
        self._file.truncate()

    def add(self, item: Any) -> None:
        """Add a line.

        Raises:
            CommandFailed: it cannot be written.
        """
        try:
            self._file.write(json_line(item).encode())
            self._file.flush()
        except OSError as error:
            raise CommandFailed(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._has_added = True

    @contextmanager
    def hint_to_resume(self) -> Iterator[None]:
        """Add to an error how to go on, if anything was added."""
        try:
            yield
        except TextMatchError as error:
            if not self._has_added:
                raise
            hint = "repeat the command with --resume for the rest"
            raise CommandFailed(f"{message_of(error)}; {hint}") from error
