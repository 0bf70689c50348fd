"""The encoder at ten times its capacity, and its two lanes: `python -m bench.overload [--quick]`.

The clients run on the same machine and use a part of its processors; the table shows how much. With `--apart`
they have half of the processors and the encoder the other half, as if on two machines. Single texts cannot
be generated ten times faster than they are embedded. Therefore each call has `--texts` texts, and the load is
compared with a closed load of calls of the same size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from bench.load_generator import (
    Calls,
    ClosedLoad,
    Embed,
    Measured,
    OpenLoad,
    background_bulk,
    background_load,
    offer,
    run_load,
)
from bench.report import JsonFile, machine, mixed_texts, new_plot, print_table, write_figures
from bench.servers import Apart, cpu_affinity, cpu_seconds, our_embed, our_encoder, pinned_to
from textmatch.encoder_client import EncoderClient
from textmatch.errors import TextMatchError

_ALONE = ClosedLoad(1, 1)
_INTERACTIVE = ClosedLoad(64, 1)
_BULK = ClosedLoad(4, 64)
_LONG_BULK = ClosedLoad(4, 256)
_LONG_TEXT_BYTES = 32_000
# More than is tokenized in the event loop.
_PAGE_CHARACTERS = 2_200
_TIMES_CAPACITY = 10
_DEADLINE_SECONDS = 1.0
_CLIENT_PROCESSES = 2
# The time of a batch of the native engine.
_BATCH_MS = 20.0
_MEGABYTE = 1e6
_PROBE_PAUSE_SECONDS = 0.01
_GIVE_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Overload:
    """An overload: `rss_bytes` of the encoder each second, the first one before the load."""

    load: OpenLoad
    calls: Calls
    rss_bytes: list[int]
    encoder_cpu_seconds: float
    recovery_seconds: float


@dataclass(frozen=True)
class Lanes:
    """Each lane alone and together with the other one.

    `long_bulk` has texts of 32 KB; a `page` is a single text of 2,200 characters.
    """

    interactive_alone: Measured
    interactive_during_bulk: Measured
    bulk_alone: Measured
    bulk_during_interactive: Measured
    interactive_during_long_bulk: Measured
    page_alone: Measured
    page_during_long_bulk: Measured


@dataclass(frozen=True)
class OverloadResults:
    """All measurements. `capacity` is with calls of as many texts as the overload's."""

    capacity_single: Measured
    capacity: Measured
    overload: Overload
    lanes: Lanes


def main(
    quick: Annotated[bool, typer.Option(help="Shorter runs; figures vary more.")] = False,
    texts_per_call: Annotated[int, typer.Option("--texts", min=1, help="Texts in a call of the load.")] = 64,
    apart: Apart = False,
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw the overload second by second; needs matplotlib.")
    ] = None,
) -> None:
    """Measure and print."""
    texts = mixed_texts(500 if quick else 2_000)
    closed_seconds, load_seconds = (3.0, 10.0) if quick else (10.0, 60.0)
    affinity = cpu_affinity(apart)
    with ExitStack() as stack:
        with pinned_to(affinity.encoder):
            address = stack.enter_context(our_encoder())
        stack.enter_context(pinned_to(affinity.others))
        results = asyncio.run(_measure(address, texts, texts_per_call, closed_seconds, load_seconds))
    figures = _figures(results)
    _print(results, figures)
    write_figures(figures, json_file)
    if plot_file is not None:
        _write_plot(results.overload, plot_file)


async def _measure(
    address: str, texts: Sequence[str], texts_per_call: int, closed_seconds: float, load_seconds: float
) -> OverloadResults:
    client = EncoderClient(address)
    interactive = our_embed(client)
    single = await run_load(interactive, _INTERACTIVE, texts, closed_seconds)
    capacity = await run_load(interactive, ClosedLoad(64, texts_per_call), texts, closed_seconds)
    alone = await run_load(interactive, _ALONE, texts, closed_seconds)
    load = OpenLoad(
        _TIMES_CAPACITY * capacity.texts_per_second / texts_per_call,
        texts_per_call,
        load_seconds,
        _DEADLINE_SECONDS,
    )
    overload = await _overload(address, client, texts, load, 2 * alone.p95_ms / 1e3)
    lanes = await _lanes(address, interactive, our_embed(client, is_bulk=True), texts, 2 * closed_seconds)
    await client.close()
    return OverloadResults(single, capacity, overload, lanes)


async def _overload(
    address: str, client: EncoderClient, texts: Sequence[str], load: OpenLoad, recovered_seconds: float
) -> Overload:
    # The encoder is the one child that this process has.
    (encoder,) = psutil.Process().children()
    rss_bytes = [encoder.memory_info().rss]
    started = asyncio.Event()
    offering = asyncio.create_task(offer(address, texts, load, started, _CLIENT_PROCESSES))
    await started.wait()
    began, cpu_before = time.perf_counter(), cpu_seconds(encoder)
    for second in range(1, round(load.seconds) + 1):
        await asyncio.sleep(began + second - time.perf_counter())
        rss_bytes.append(encoder.memory_info().rss)
    used_seconds = cpu_seconds(encoder) - cpu_before
    recovery_seconds = await _recovery_seconds(client, texts, recovered_seconds)
    return Overload(load, await offering, rss_bytes, used_seconds, recovery_seconds)


async def _recovery_seconds(client: EncoderClient, texts: Sequence[str], recovered_seconds: float) -> float:
    """Seconds until the end of the first single call that takes at most `recovered_seconds`."""
    began = time.perf_counter()
    position = 0
    while (called := time.perf_counter()) < began + _GIVE_UP_SECONDS:
        try:
            await client.encode(
                [texts[position % len(texts)]],
                is_query=False,
                is_bulk=False,
                timeout_seconds=_GIVE_UP_SECONDS,
            )
        except TextMatchError:
            await asyncio.sleep(_PROBE_PAUSE_SECONDS)
            continue
        if time.perf_counter() - called <= recovered_seconds:
            return time.perf_counter() - began
        position += 1
    raise RuntimeError(f"the encoder did not recover within {_GIVE_UP_SECONDS:.0f} s")


async def _lanes(
    address: str, interactive: Embed, bulk: Embed, texts: Sequence[str], seconds: float
) -> Lanes:
    interactive_alone = await run_load(interactive, _ALONE, texts, seconds)
    async with background_load(bulk, _BULK, texts):
        interactive_during_bulk = await run_load(interactive, _ALONE, texts, seconds)
    bulk_alone = await run_load(bulk, _BULK, texts, seconds)
    async with background_load(interactive, _INTERACTIVE, texts):
        bulk_during_interactive = await run_load(bulk, _BULK, texts, seconds)
    pages = _joined(texts, _PAGE_CHARACTERS)
    page_alone = await run_load(interactive, _ALONE, pages, seconds)
    async with background_bulk(address, _LONG_BULK, _joined(texts, _LONG_TEXT_BYTES)):
        interactive_during_long_bulk = await run_load(interactive, _ALONE, texts, seconds)
        page_during_long_bulk = await run_load(interactive, _ALONE, pages, seconds)
    return Lanes(
        interactive_alone,
        interactive_during_bulk,
        bulk_alone,
        bulk_during_interactive,
        interactive_during_long_bulk,
        page_alone,
        page_during_long_bulk,
    )


def _joined(texts: Sequence[str], characters: int) -> list[str]:
    """Texts of this length, from different places in all texts."""
    text = " ".join(texts)
    text *= -(-2 * characters // len(text))
    starts = range(0, len(text) - characters, max(1, (len(text) - characters) // 16))
    return [text[start : start + characters] for start in starts]


def _figures(results: OverloadResults) -> dict[str, float]:
    overload, lanes = results.overload, results.lanes
    calls = overload.calls
    refusals_ms = calls.took_seconds[calls.is_refused] * 1e3
    return {
        "goodput_share": _answered_texts_per_second(overload) / results.capacity.texts_per_second,
        "refusal_p99_ms": float(np.percentile(refusals_ms, 99)) if len(refusals_ms) else 0.0,
        "late_answers": float(calls.is_late.sum()),
        "rss_growth_mb": (max(overload.rss_bytes) - overload.rss_bytes[0]) / _MEGABYTE,
        "recovery_s": overload.recovery_seconds,
        "lane_p95_ratio": lanes.interactive_during_bulk.p95_ms / lanes.interactive_alone.p95_ms,
        "long_lane_p95_ratio": lanes.interactive_during_long_bulk.p95_ms / lanes.interactive_alone.p95_ms,
        "long_lane_page_p95_ratio": lanes.page_during_long_bulk.p95_ms / lanes.page_alone.p95_ms,
        "bulk_share_kept": lanes.bulk_during_interactive.texts_per_second / lanes.bulk_alone.texts_per_second,
    }


def _answered_texts_per_second(overload: Overload) -> float:
    """Answered in time and before the load ended."""
    calls, load = overload.calls, overload.load
    answered = (calls.is_answered & (calls.ended_at <= load.seconds)).sum()
    return float(answered) * load.texts_per_call / load.seconds


def _print(results: OverloadResults, figures: dict[str, float]) -> None:
    overload, lanes = results.overload, results.lanes
    calls, load = overload.calls, overload.load
    offered = len(calls.sent_at) * load.texts_per_call / load.seconds
    refusals_ms = calls.took_seconds[calls.is_refused] * 1e3
    behind_p99_ms = np.percentile(calls.behind_seconds, 99) * 1e3
    processors = [
        seconds / load.seconds for seconds in (overload.encoder_cpu_seconds, calls.client_cpu_seconds)
    ]
    p95_aim_ms = 2 * lanes.interactive_alone.p95_ms + _BATCH_MS
    page_aim_ms = 2 * lanes.page_alone.p95_ms + _BATCH_MS
    rows = [
        ["capacity, 64 callers × 1 text, texts/s", f"{results.capacity_single.texts_per_second:.0f}", ""],
        [
            f"capacity, 64 callers × {load.texts_per_call}, texts/s",
            f"{results.capacity.texts_per_second:.0f}",
            "",
        ],
        [
            f"offered, calls of {load.texts_per_call}, texts/s",
            f"{offered:.0f} ({offered / results.capacity.texts_per_second:.1f} × capacity)",
            f"{_TIMES_CAPACITY} × capacity",
        ],
        ["calls sent later than due, p99 ms", f"{behind_p99_ms:.1f}", ""],
        ["answered in time, texts/s", f"{_answered_texts_per_second(overload):.0f}", ""],
        ["share of capacity", f"{figures['goodput_share']:.2f}", "≥ 0.90"],
        ["refused calls", f"{calls.is_refused.sum()} of {len(calls.code)}", ""],
        [
            "refused after, p50 / p99 ms",
            " / ".join(f"{np.percentile(refusals_ms, part):.1f}" for part in (50, 99))
            if len(refusals_ms)
            else "–",
            "p99 ≤ 20",
        ],
        ["late calls", f"{calls.is_late.sum()}", "0"],
        ["calls that failed otherwise", f"{calls.is_failed.sum()}", "0"],
        ["memory growth, MB", f"{figures['rss_growth_mb']:.0f}", ""],
        [
            "processors used: encoder / clients",
            " / ".join(f"{count:.2f}" for count in processors),
            "",
        ],
        ["recovered after, s", f"{overload.recovery_seconds:.2f}", "≤ 2"],
        ["1 × 1 alone, p95 ms", f"{lanes.interactive_alone.p95_ms:.1f}", ""],
        [
            "1 × 1 during 4 × 64 bulk, p95 ms",
            f"{lanes.interactive_during_bulk.p95_ms:.1f}",
            f"≤ {p95_aim_ms:.0f}",
        ],
        [
            "1 × 1 during 4 × 256 bulk of 32 kB, p95 ms",
            f"{lanes.interactive_during_long_bulk.p95_ms:.1f}",
            f"≤ {p95_aim_ms:.0f}",
        ],
        ["1 × 1 of 2,200 characters alone, p95 ms", f"{lanes.page_alone.p95_ms:.1f}", ""],
        [
            "1 × 1 of 2,200 characters during 4 × 256 bulk of 32 kB, p95 ms",
            f"{lanes.page_during_long_bulk.p95_ms:.1f}",
            f"≤ {page_aim_ms:.0f}",
        ],
        ["4 × 64 bulk alone, texts/s", f"{lanes.bulk_alone.texts_per_second:.0f}", ""],
        [
            "4 × 64 bulk during 64 × 1, texts/s",
            f"{lanes.bulk_during_interactive.texts_per_second:.0f}",
            f"≥ {lanes.bulk_alone.texts_per_second / 10:.0f}",
        ],
    ]
    print_table(f"Overload and lanes ({machine()})", ["quantity", "measured", "target"], rows)


def _write_plot(overload: Overload, path: Path) -> None:
    """Draw outcomes, time to refusal and memory, second by second."""
    plot = new_plot(path, rows=3, size=(9, 8))
    if plot is None:
        return
    figure, (outcomes, refusal, memory) = plot
    calls, load, rss_bytes = overload.calls, overload.load, overload.rss_bytes
    edges = np.arange(round(load.seconds) + 1)
    for name, chosen in (
        ("answered", calls.is_answered),
        ("refused", calls.is_refused),
        ("late", calls.is_late),
    ):
        counts, _ = np.histogram(calls.ended_at[chosen], bins=edges)
        outcomes.step(edges[:-1], counts * load.texts_per_call, where="post", label=name)
    outcomes.set_ylabel("texts/s")
    outcomes.legend()
    refusal.plot(edges[:-1], _refusal_p99_ms(calls, edges))
    refusal.set_ylabel("refused after, p99 ms")
    memory.plot(range(len(rss_bytes)), np.array(rss_bytes) / 1e6)
    memory.set_ylabel("memory, MB")
    memory.set_xlabel("seconds of overload")
    figure.savefig(path)


def _refusal_p99_ms(calls: Calls, edges: np.ndarray) -> list[float]:
    refused_at = calls.ended_at[calls.is_refused]
    took_ms = calls.took_seconds[calls.is_refused] * 1e3
    p99 = []
    for second in edges[:-1]:
        during = took_ms[(refused_at >= second) & (refused_at < second + 1)]
        p99.append(float(np.percentile(during, 99)) if len(during) else float("nan"))
    return p99


if __name__ == "__main__":
    typer.run(main)
