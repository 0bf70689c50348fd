"""`textmatch status`: how everything is.

`textmatch status --watch`: the ingest queue again and again, with how fast it moves.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from textmatch.cli import options
from textmatch.cli.connection import Addresses, find_addresses
from textmatch.cli.errors import message_of
from textmatch.client import DocumentState, HealthState, IngestStatus, Model, ServerHealth
from textmatch.console import cell, one_line, print_json, print_line, print_table, warn
from textmatch.errors import TextMatchError

_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """The queue at one moment, or why it is not known. Rates are None before there are two samples.

    Args:
        indexed_per_second: documents that were not in the index before, less those deleted.
        drained_per_second: documents that left the queue, less those that came.
    """

    status: IngestStatus | None
    problem: str
    indexed_per_second: float | None = None
    drained_per_second: float | None = None


def samples(ask: Callable[[], IngestStatus]) -> Iterator[Sample]:
    """One sample every second; never ends."""
    before: tuple[float, IngestStatus] | None = None
    while True:
        asked = time.monotonic()
        try:
            status = ask()
        except TextMatchError as error:
            before = None
            yield Sample(None, message_of(error) or str(error))
        else:
            yield _sample(status, asked, before)
            before = asked, status
        time.sleep(max(0.0, asked + _INTERVAL_SECONDS - time.monotonic()))


def watch(ask: Callable[[], IngestStatus], *, as_json: bool) -> None:
    """Show samples until somebody presses Ctrl-C: a table that changes, or lines of JSON."""
    try:
        if as_json:
            for sample in samples(ask):
                print_json(to_json(sample))
            return
        console = Console(highlight=False)
        with Live(console=console, auto_refresh=False) as live:
            for sample in samples(ask):
                live.update(_view(sample), refresh=True)
    except KeyboardInterrupt:
        return


def to_json(sample: Sample) -> dict[str, Any]:
    """The shape that programs rely on; what is not known is null."""
    status = sample.status
    return {
        "documents": status.document_count if status else None,
        "queued": status.queued_count if status else None,
        "oldest_seconds": status.oldest_queued_seconds if status else None,
        "dead_letters": status.dead_letter_count if status else None,
        "indexed_per_second": sample.indexed_per_second,
        "drained_per_second": sample.drained_per_second,
        "problem": sample.problem or None,
    }


def _sample(status: IngestStatus, now: float, before: tuple[float, IngestStatus] | None) -> Sample:
    if before is None:
        return Sample(status, "")
    then, earlier = before
    seconds = max(now - then, 0.001)
    return Sample(
        status,
        "",
        indexed_per_second=(status.document_count - earlier.document_count) / seconds,
        drained_per_second=(earlier.queued_count - status.queued_count) / seconds,
    )


def _view(sample: Sample) -> Group | Text:
    if sample.status is None:
        return Text(sample.problem)
    table = Table("documents", "queued", "oldest", "dead letters", "new documents", "queue empty in")
    table.add_row(
        f"{sample.status.document_count:,}",
        f"{sample.status.queued_count:,}",
        f"{sample.status.oldest_queued_seconds:.1f} s",
        f"{sample.status.dead_letter_count:,}",
        "" if sample.indexed_per_second is None else f"{sample.indexed_per_second:,.0f}/s",
        _time_left(sample),
    )
    return Group(table, Text("Ctrl-C ends", style="dim"))


def _time_left(sample: Sample) -> str:
    if sample.status is None or not sample.status.queued_count:
        return ""
    if not sample.drained_per_second or sample.drained_per_second < 0:
        return "it does not shrink"
    return f"{sample.status.queued_count / sample.drained_per_second:,.0f} s"


Answer = TypeVar("Answer")

_CONNECT_TIMEOUT_SECONDS = 1.0


DocumentId = Annotated[
    str, typer.Option("--id", metavar="ID", help="Say where this document stands instead.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Show the ingest queue every second, until Ctrl-C.")]


def status(
    document_id: DocumentId = "",
    is_watching: Watch = False,
    as_json: options.Json = False,
    matcher: options.Matcher = "",
    encoder: options.Encoder = "",
    data_dir: options.DataDir = None,
) -> None:
    """Show what is stored, what waits, which models are loaded, and how the processes are.

    The exit code is 0 if encoder and matcher are SERVING and answer. With --json: {"documents", "queued",
    "oldest_seconds", "dead_letters", "collection", "models", "processes"}; what is not known is null.

    With --id, a document is PENDING, INDEXED, FAILED, DELETED or UNKNOWN; --json: {"id", "state", "error"}.
    With --watch and --json: one line a second with the figures of the queue.
    """
    if document_id and is_watching:
        raise typer.BadParameter("give either --id or --watch")
    addresses = find_addresses(data_dir, matcher=matcher, encoder=encoder)
    if document_id or is_watching:
        with addresses.client() as client:
            if document_id:
                _print_document(document_id, client.ingest_status(document_id), as_json=as_json)
            else:
                watch(client.ingest_status, as_json=as_json)
        return
    with addresses.client() as client:
        servers = client.health()
        problems = [_problem(server) for server in servers if server.state is not HealthState.SERVING]
        reachable = {server.name for server in servers if server.state is not HealthState.UNREACHABLE}
        queue = _ask(client.ingest_status, problems) if "matcher" in reachable else None
        models = _ask(client.models, problems) if "encoder" in reachable else None
    processes = [*servers, *_other_processes(addresses, servers)]
    if as_json:
        print_json(to_json_status(queue, models, processes))
    else:
        _print(queue, models, processes)
    for problem in problems:
        warn(f"textmatch: {problem}")
    if problems:
        raise typer.Exit(1)


def to_json_status(
    queue: IngestStatus | None, models: Sequence[Model] | None, processes: Sequence[ServerHealth]
) -> dict[str, Any]:
    """The shape that programs rely on."""
    return {
        "documents": queue.document_count if queue else None,
        "queued": queue.queued_count if queue else None,
        "oldest_seconds": queue.oldest_queued_seconds if queue else None,
        "dead_letters": queue.dead_letter_count if queue else None,
        "collection": queue.collection or None if queue else None,
        "models": None if models is None else [dataclasses.asdict(model) for model in models],
        "processes": [
            {"name": process.name, "address": process.address, "health": process.state}
            for process in processes
        ],
    }


def _print_document(document_id: str, found: IngestStatus, *, as_json: bool) -> None:
    state = found.document_state or DocumentState.UNKNOWN
    if as_json:
        print_json({"id": document_id, "state": state, "error": found.document_error})
    else:
        print_line(f"{state}: {one_line(found.document_error)}" if found.document_error else str(state))


def _problem(server: ServerHealth) -> str:
    if server.state is HealthState.UNREACHABLE:
        return f"the {server.name} at {server.address} does not answer; start the stack with: textmatch up"
    return f"the {server.name} at {server.address} is {server.state}"


def _ask(question: Callable[[], Answer], problems: list[str]) -> Answer | None:
    """The answer, or None with one more problem."""
    try:
        return question()
    except TextMatchError as error:
        problems.append(message_of(error) or str(error))
        return None


def _other_processes(addresses: Addresses, servers: Sequence[ServerHealth]) -> list[ServerHealth]:
    """The rest of a stack on this machine, which serves if it takes connections."""
    known = {server.name for server in servers}
    return [
        ServerHealth(process.name, process.address, _connects(process.address))
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


def _print(
    queue: IngestStatus | None, models: Sequence[Model] | None, processes: Sequence[ServerHealth]
) -> None:
    if queue is not None:
        figures = Table("documents", "queued", "oldest", "dead letters", "collection")
        figures.add_row(
            f"{queue.document_count:,}",
            f"{queue.queued_count:,}",
            f"{queue.oldest_queued_seconds:.1f} s",
            f"{queue.dead_letter_count:,}",
            queue.collection or "none yet",
        )
        print_table(figures)
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
