"""Versions that the matcher gives."""

from __future__ import annotations

import pytest

from services.matcher import ingest
from services.matcher.ingest import VersionClock
from textmatch.documents import Document


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in microseconds, to be changed by the test."""
    time = [1_000]
    monkeypatch.setattr(ingest, "version_now", lambda: time[0])
    return time


def stamp(clock: VersionClock, *given: Document) -> list[int]:
    return [document.version for document in clock.stamp(dict(enumerate(given)), clock.next()).values()]


def test_one_version_for_all_but_the_later_of_an_id_wins(now: list[int]):
    clock = VersionClock()
    a, b = Document("a", "t"), Document("b", "t")
    assert stamp(clock, a, b, a, Document("c", "t", version=7), a) == [1_000, 1_000, 1_001, 7, 1_002]


def test_versions_never_go_back_or_repeat(now: list[int]):
    clock = VersionClock()
    a = Document("a", "t")
    assert stamp(clock, a, a, a) == [1_000, 1_001, 1_002]
    assert stamp(clock, a) == [1_003]
    now[0] = 500
    assert stamp(clock, a) == [1_004]
    assert clock.next() == 1_005
    now[0] = 2_000
    assert clock.next() == 2_000


def test_versions_of_clients_do_not_move_the_clock(now: list[int]):
    clock = VersionClock()
    stamp(clock, Document("a", "t", version=9_000))
    assert stamp(clock, Document("a", "t")) == [1_001]
