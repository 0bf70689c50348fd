"""`textmatch status`: collections, queue, models and processes; `--watch`: the queue every second."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from textmatch.cli import options
from textmatch.cli.errors import CommandFailed, message_of
from textmatch.cli.options import Addresses, find_addresses
from textmatch.client import (
    HealthState,
    IngestStatus,
    ModelInfo,
    Problem,
    ServerHealth,
    TextMatchClient,
)
from textmatch.console import cell, one_line, print_json, print_line, print_result, print_table, warn
from textmatch.errors import TextMatchError

Result = TypeVar("Result")

DocumentId = Annotated[str, typer.Option("--id", metavar="ID", help="Show the state of this document.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show the ingest queue every second, until Ctrl-C.")]

_CONNECT_TIMEOUT_SECONDS = 1.0
_WATCH_INTERVAL_SECONDS = 1.0
_QUEUE_COLUMNS = ("documents", "queued", "oldest", "dead letters")


def status(
    document_id: DocumentId = "",
    is_watching: Watch = False,
    collection: options.CollectionName = "",
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Show each collection and its queue, loaded models, and the health of the processes.

    The exit code is 0 if encoder and matcher are SERVING, and no store or worker has a problem. --json prints
    {"documents", "queued", "oldest_seconds", "dead_letters", "truncated", "collection", "collections",
    "models", "processes", "problems"}. The figures are those of one collection; "collections" has those of
    each. "truncated" counts documents of which the model has not read the end. Unknown values are null.

    --id shows the state of a document: PENDING, INDEXED, FAILED, DELETED or UNKNOWN; with --json {"id",
    "state", "error"}. --watch with --json prints one line per second: the queue and its rates.
    """
    if document_id and is_watching:
        raise typer.BadParameter("give either --id or --watch")
    addresses = find_addresses(data_dir, matcher=matcher, encoder=encoder, collection=collection)
    with addresses.client() as client:
        if document_id:
            _show_document(document_id, client.ingest_status(document_id), as_json=as_json)
            return
        if is_watching:
            _watch(client.ingest_status, as_json=as_json)
            return
        servers = client.health()
        problems = [_problem(server) for server in servers if server.state is not HealthState.SERVING]
        reachable = {server.name for server in servers if server.state is not HealthState.UNREACHABLE}
        queue = _ask(client.ingest_status, problems) if "matcher" in reachable else None
        failing = queue.problems if queue else ()
        problems += [_line_of(problem) for problem in failing]
        queues = None if queue is None else _ask(lambda: _queues(client, queue), problems)
        models = _ask(client.models, problems) if "encoder" in reachable else None
    processes = [*servers, *_other_processes(addresses, servers, {problem.source for problem in failing})]
    if as_json:
        print_json(_to_json(queue, queues, models, processes))
    else:
        _print(queues, models, processes)
    for problem in problems:
        warn(f"textmatch: {problem}")
    if problems:
        raise typer.Exit(1)


def _queues(client: TextMatchClient, known: IngestStatus) -> list[IngestStatus]:
    """The status of each collection. `default` is not listed before its first document."""
    names = {summary.config.name for summary in client.list_collections()} | {known.collection}
    return [
        known if name == known.collection else client.ingest_status(collection=name) for name in sorted(names)
    ]


def _show_document(document_id: str, found: IngestStatus, *, as_json: bool) -> None:
    if found.document_state is None:
        reasons = [problem.message for problem in found.problems if problem.source == "qdrant"]
        raise CommandFailed(f"the state of {document_id!r} is not known: {'; '.join(reasons)}")
    state, error = found.document_state, found.document_error
    line = f"{state}: {one_line(error)}" if error else str(state)
    print_result({"id": document_id, "state": state, "error": error}, line, as_json=as_json)


def _problem(server: ServerHealth) -> str:
    if server.state is HealthState.UNREACHABLE:
        return f"the {server.name} at {server.address} does not answer; start the stack with: textmatch up"
    return f"the {server.name} at {server.address} is {server.state}"


def _ask(question: Callable[[], Result], problems: list[str]) -> Result | None:
    """The answer; None if there is none, with one more problem."""
    try:
        return question()
    except TextMatchError as error:
        problems.append(message_of(error) or str(error))
        return None


def _line_of(problem: Problem) -> str:
    if problem.source == "worker":
        return f'the indexing of "{problem.collection}" waits for an operator: {problem.message}'
    return problem.message


def _other_processes(
    addresses: Addresses, servers: Sequence[ServerHealth], failing: Collection[str]
) -> list[ServerHealth]:
    """The other processes of a stack on this machine.

    They are healthy if they accept connections, and the matcher has no problem with them.
    """
    known = {server.name for server in servers}
    return [
        ServerHealth(
            process.name,
            process.address,
            HealthState.NOT_SERVING if process.name in failing else _connects(process.address),
        )
        for process in addresses.processes
        if process.name not in known
    ]


def _connects(address: str) -> HealthState:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError):
        return HealthState.UNREACHABLE
    return HealthState.SERVING


def _to_json(
    queue: IngestStatus | None,
    queues: Sequence[IngestStatus] | None,
    models: Sequence[ModelInfo] | None,
    processes: Sequence[ServerHealth],
) -> dict[str, Any]:
    return {
        **_queue_to_json(queue),
        "collection": queue.collection if queue else None,
        "collections": None
        if queues is None
        else [
            {"name": one.collection, "model_id": one.model_id or None, **_queue_to_json(one)}
            for one in queues
        ],
        "models": None if models is None else [dataclasses.asdict(model) for model in models],
        "processes": [
            {"name": process.name, "address": process.address, "health": process.state}
            for process in processes
        ],
        "problems": [dataclasses.asdict(problem) for problem in queue.problems] if queue else [],
    }


def _queue_to_json(queue: IngestStatus | None) -> dict[str, Any]:
    return {
        "documents": queue.document_count if queue else None,
        "queued": queue.queued_count if queue else None,
        "oldest_seconds": queue.oldest_queued_seconds if queue else None,
        "dead_letters": queue.dead_letter_count if queue else None,
        "truncated": queue.truncated_count if queue else None,
    }


def _print(
    queues: Sequence[IngestStatus] | None,
    models: Sequence[ModelInfo] | None,
    processes: Sequence[ServerHealth],
) -> None:
    if queues is not None:
        figures = Table("collection", *_QUEUE_COLUMNS, "model")
        for queue in queues:
            figures.add_row(cell(queue.collection), *_queue_cells(queue), queue.model_id or "none yet")
        print_table(figures)
        for queue in queues:
            if queue.truncated_count:
                print_line(f"{queue.collection}: the end of {queue.truncated_count:,} documents is not read")
    if models is not None:
        loaded = Table("model", "kind", "dimension", "tokens", "type", "device")
        for model in models:
            size = str(model.dimension) if model.dimension else ""
            loaded.add_row(model.model_id, model.kind, size, str(model.max_tokens), model.dtype, model.device)
        print_table(loaded)
    running = Table("process", "address", "health")
    for process in processes:
        running.add_row(cell(process.name), cell(process.address), process.state)
    print_table(running)


def _queue_cells(queue: IngestStatus) -> list[str]:
    return [
        "unknown" if queue.document_count is None else f"{queue.document_count:,}",
        f"{queue.queued_count:,}",
        f"{queue.oldest_queued_seconds:.1f} s",
        f"{queue.dead_letter_count:,}",
    ]


@dataclass(frozen=True)
class QueueSample:
    """The queue at one moment, or the `problem` that prevented the sample. The first one has no rates.

    Attributes:
        indexed_per_second: new documents in the index, minus deleted ones.
        drained_per_second: documents that left the queue, minus added ones.
    """

    status: IngestStatus | None
    problem: str = ""
    indexed_per_second: float | None = None
    drained_per_second: float | None = None


def _watch(ask: Callable[[], IngestStatus], *, as_json: bool) -> None:
    """Show samples until Ctrl-C: lines of JSON, or a table that changes."""
    try:
        if as_json:
            for sample in _samples(ask):
                print_json(
                    {
                        **_queue_to_json(sample.status),
                        "indexed_per_second": sample.indexed_per_second,
                        "drained_per_second": sample.drained_per_second,
                        "problem": sample.problem or None,
                    }
                )
            return
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            for sample in _samples(ask):
                live.update(_view(sample), refresh=True)
    except KeyboardInterrupt:
        return


def _samples(ask: Callable[[], IngestStatus]) -> Iterator[QueueSample]:
    """One sample per second, forever."""
    before: tuple[float, IngestStatus] | None = None
    while True:
        asked = time.monotonic()
        try:
            queue = ask()
        except TextMatchError as error:
            before = None
            yield QueueSample(None, message_of(error) or str(error))
        else:
            yield _sample(queue, asked, before)
            before = asked, queue
        time.sleep(max(0.0, asked + _WATCH_INTERVAL_SECONDS - time.monotonic()))


def _sample(queue: IngestStatus, now: float, before: tuple[float, IngestStatus] | None) -> QueueSample:
    if before is None:
        return QueueSample(queue)
    then, earlier = before
    seconds = max(now - then, 0.001)
    indexed = None
    if queue.document_count is not None and earlier.document_count is not None:
        indexed = (queue.document_count - earlier.document_count) / seconds
    return QueueSample(
        queue,
        indexed_per_second=indexed,
        drained_per_second=(earlier.queued_count - queue.queued_count) / seconds,
    )


def _view(sample: QueueSample) -> Group | Text:
    if sample.status is None:
        return Text(sample.problem)
    rate = "" if sample.indexed_per_second is None else f"{sample.indexed_per_second:,.0f}/s"
    table = Table(*_QUEUE_COLUMNS, "indexed", "queue empty in")
    time_left = _time_left(sample.status.queued_count, sample.drained_per_second)
    table.add_row(*_queue_cells(sample.status), rate, time_left)
    return Group(table, Text("Ctrl-C ends", style="dim"))


def _time_left(queued_count: int, drained_per_second: float | None) -> str:
    if not queued_count:
        return ""
    if not drained_per_second or drained_per_second < 0:
        return "not shrinking"
    return f"{queued_count / drained_per_second:,.0f} s"
