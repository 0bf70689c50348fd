"""An overload second by second."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer

from bench.overload_calls import Calls, OpenLoad


def write_plot(calls: Calls, load: OpenLoad, rss_bytes: Sequence[int], path: Path) -> None:
    """Draw outcomes, time to refusal and memory; says so if matplotlib is not installed."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        typer.echo(f"{path} was not drawn: matplotlib is not installed", err=True)
        return
    edges = np.arange(round(load.seconds) + 1)
    figure = figures.Figure(figsize=(9, 8), layout="constrained")
    outcomes, refusal, memory = figure.subplots(3, 1, sharex=True)
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
