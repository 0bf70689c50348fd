"""`textmatch status --watch`: the ingest queue again and again, with how fast it moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from textmatch.cli.messages import message_of
from textmatch.cli.output import print_json
from textmatch.client import IngestStatus
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
