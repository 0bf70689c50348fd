"""A large upload through the gateway while the broker is away: `python -m bench.upload [--megabytes 1000]`.

curl sends lines that are generated on the fly. In the middle Redis is killed, and started again some seconds
later. Every line must have one result, each accepted document must be in the queue, and the gateway's memory
must not grow with the upload. No worker runs, so that the queue shows what was stored.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

from bench.report import JsonFile, machine, print_table, write_figures
from bench.servers import RunningStack, rss_bytes, running_stack
from textmatch.client import TextMatchClient

_MB = 1_000_000
_CHUNK_LINES = 500
_SAMPLE_SECONDS = 0.5
# The share of the upload after which memory is compared: buffers and pools are filled by then.
_WARM_SHARE = 0.1
# Higher than any upload, so that the queue is not what is measured.
_QUEUE = {
    "TEXTMATCH_INGEST_MAX_QUEUED_DOCUMENTS": str(10**9),
    "TEXTMATCH_INGEST_MAX_QUEUED_BYTES": str(10**12),
}


@dataclass
class Upload:
    """What is known of an upload.

    Attributes:
        samples: seconds since the start, lines sent, lines answered, resident bytes of the gateway.
    """

    line_count: int
    sent_count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answered: bytearray = field(default_factory=bytearray)
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    is_half_done: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, line: bytes) -> None:
        """Note a line of the answer.

        Raises:
            RuntimeError: the line was answered before, or never sent.
        """
        result = json.loads(line)
        number = result["line"]
        if not 1 <= number <= self.line_count or self.answered[number]:
            raise RuntimeError(f"line {number} has no place for this result: {line.decode()}")
        self.answered[number] = 1
        self.outcomes[result["outcome"]] += 1
        if 2 * self.answered_count >= self.line_count:
            self.is_half_done.set()

    @property
    def answered_count(self) -> int:
        """Lines that have a result."""
        return self.outcomes.total()


def main(
    megabytes: Annotated[int, typer.Option(help="Size of the upload.")] = 1_000,
    line_bytes: Annotated[int, typer.Option(help="Size of a line.")] = 500,
    outage_seconds: Annotated[float, typer.Option(help="How long Redis is away.")] = 10.0,
    json_path: JsonFile = None,
) -> None:
    """Upload, and check every result."""
    line_count = megabytes * _MB // line_bytes
    upload = Upload(line_count, answered=bytearray(line_count + 1))
    with (
        tempfile.TemporaryDirectory() as directory,
        running_stack(Path(directory), _QUEUE, has_gateway=True) as stack,
    ):
        stack.processes["worker"].suspend()
        broker = Broker(stack.processes["redis"], stack.commands["redis"])
        try:
            seconds = asyncio.run(_run(stack, upload, line_bytes, broker, outage_seconds))
            with TextMatchClient(stack.addresses["matcher"], timeout_seconds=60) as client:
                queued_count = client.ingest_status().queued_count
        finally:
            broker.stop()
            stack.processes["worker"].resume()
    _check(upload, queued_count)
    write_figures(_figures(upload, seconds, megabytes), json_path)


class Broker:
    """The Redis of a stack: can be killed and started again with the same data."""

    def __init__(self, process: psutil.Process, command: Sequence[str]) -> None:
        self._process = process
        self._command = command
        self._again: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """SIGKILL: only what is on the disk survives."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start it on the same port."""
        quiet = subprocess.DEVNULL
        self._again = subprocess.Popen(self._command, stdout=quiet, stderr=quiet)

    def stop(self) -> None:
        """End what `start` started."""
        if self._again is not None:
            self._again.terminate()
            self._again.wait()


async def _run(
    stack: RunningStack, upload: Upload, line_bytes: int, broker: Broker, outage_seconds: float
) -> float:
    """The seconds that the upload took."""
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-N", "-X", "POST", "-T", "-", "-H", "content-type: application/x-ndjson"),
        f"http://{stack.addresses['gateway']}/v1/collections/default/documents",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    if curl.stdin is None or curl.stdout is None:
        raise RuntimeError("curl has no pipes")
    started = time.perf_counter()

    def note() -> None:
        memory = rss_bytes(stack.processes["gateway"])
        taken = time.perf_counter() - started
        upload.samples.append((taken, upload.sent_count, upload.answered_count, memory))

    sampling = asyncio.create_task(_sample(note))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_send(curl.stdin, upload, line_bytes))
            group.create_task(_receive(curl.stdout, upload))
            group.create_task(_interrupt(upload, broker, outage_seconds))
    finally:
        sampling.cancel()
    if await curl.wait():
        raise RuntimeError("curl failed")
    return time.perf_counter() - started


async def _sample(note: Callable[[], None]) -> None:
    while True:
        note()
        await asyncio.sleep(_SAMPLE_SECONDS)


def _line(number: int, line_bytes: int) -> bytes:
    head, end = f'{{"id": "line-{number}", "text": "text {number} '.encode(), b'"}\n'
    return head + b"x" * (line_bytes - len(head) - len(end)) + end


async def _send(body: asyncio.StreamWriter, upload: Upload, line_bytes: int) -> None:
    """Send the lines in parts. The body is never in memory as a whole."""
    for start in range(0, upload.line_count, _CHUNK_LINES):
        numbers = range(start, min(start + _CHUNK_LINES, upload.line_count))
        body.write(b"".join(_line(number, line_bytes) for number in numbers))
        await body.drain()
        upload.sent_count = numbers[-1] + 1
    body.close()


async def _receive(answer: asyncio.StreamReader, upload: Upload) -> None:
    async for line in answer:
        upload.take(line)


async def _interrupt(upload: Upload, broker: Broker, outage_seconds: float) -> None:
    await upload.is_half_done.wait()
    await asyncio.to_thread(broker.kill)
    await asyncio.sleep(outage_seconds)
    broker.start()


def _check(upload: Upload, queued_count: int) -> None:
    """Every line has a result, and what was accepted is queued.

    Raises:
        RuntimeError: a result is missing, or is not true.
    """
    if upload.answered_count != upload.line_count:
        raise RuntimeError(f"{upload.line_count - upload.answered_count:,} lines have no result")
    accepted, failed = upload.outcomes["ACCEPTED"], upload.outcomes["FAILED"]
    # A line that was not answered may be stored all the same.
    if not accepted <= queued_count <= accepted + failed:
        raise RuntimeError(f"{accepted:,} were accepted and {failed:,} failed; {queued_count:,} are queued")


def _figures(upload: Upload, seconds: float, megabytes: int) -> dict[str, float]:
    warm = [one for one in upload.samples if one[2] >= _WARM_SHARE * upload.line_count]
    shown = warm[:: max(1, len(warm) // 10)]
    print_table(
        f"Upload of {megabytes} MB, {upload.line_count:,} lines, {machine()}",
        ["seconds", "sent", "answered", "gateway MiB"],
        [
            [f"{at:.0f}", f"{sent:,}", f"{answered:,}", f"{rss / 2**20:.1f}"]
            for at, sent, answered, rss in shown
        ],
    )
    print_table(
        "Outcomes", ["outcome", "lines"], [[name, f"{one:,}"] for name, one in upload.outcomes.items()]
    )
    memory = [rss / 2**20 for _, _, _, rss in warm]
    return {
        "upload_mb_per_second": megabytes / seconds,
        "upload_lines_per_second": upload.line_count / seconds,
        "upload_failed_lines": float(upload.outcomes["FAILED"]),
        "upload_gateway_mib_at_10_percent": memory[0],
        "upload_gateway_mib_max_after": max(memory),
    }


if __name__ == "__main__":
    typer.run(main)
