"""Which processors the encoder gets and which the rest: all, or half each as on machines of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

Apart = Annotated[
    bool,
    typer.Option("--apart", help="The encoder on half of the processors, everything else on the other half."),
]


@dataclass(frozen=True)
class Processors:
    """Numbers of processors, as the kernel counts them."""

    encoder: frozenset[int]
    others: frozenset[int]


def divided(is_apart: bool) -> Processors:
    """Half of the processors for each side, or all of them for both.

    Raises:
        typer.BadParameter: one processor cannot be divided.
    """
    available = sorted(os.sched_getaffinity(0))
    if not is_apart:
        return Processors(frozenset(available), frozenset(available))
    if len(available) < 2:
        raise typer.BadParameter("--apart needs at least two processors")
    half = len(available) // 2
    return Processors(frozenset(available[:half]), frozenset(available[half:]))


@contextmanager
def running_on(processors: frozenset[int]) -> Iterator[None]:
    """What starts meanwhile, threads and processes, stays on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
