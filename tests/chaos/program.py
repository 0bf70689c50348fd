"""The events of a run and its expected result. Both depend on a seed and the number of documents only.

A document is written, perhaps updated, perhaps deleted, perhaps written again. With explicit versions, these
events are sent in any order and up to three times, because only their versions count. Without versions, the
order of sending counts. Therefore one sender sends all events of such a document, one after the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from textmatch.documents import Document

SENDERS = 3
QDRANT = "qdrant"

_UPDATED_SHARE = 0.3
_DELETED_SHARE = 0.1
_REVIVED_SHARE = 0.3
_UNVERSIONED_SHARE = 0.1
# An update of the attributes alone takes another way through the worker than one of the text.
_SAME_TEXT_SHARE = 0.3
_MAX_COPIES = 3
# Texts of this share have up to so many sentences; each sentence fills a passage of the model.
_LONG_SHARE = 0.1
_MAX_SENTENCES = 40
_SENTENCE_WORDS = 14
# Half of the documents have their events close together, to make workers race for them.
_HOT_SHARE = 0.5
_HOT_WIDTH = 0.01
_MAX_DELAY_SECONDS = 1.0
_MAX_DOWN_SECONDS = 1.0
_DOUBLE_KILL_SHARE = 0.25


@dataclass(frozen=True)
class Delete:
    """Delete a document up to a version; None: up to now."""

    id: str
    version: int | None


Operation = Document | Delete


@dataclass(frozen=True)
class Kill:
    """Kill these processes together, so long after the round began, and start them again after a while."""

    victims: tuple[str, ...]
    delay_seconds: float
    down_seconds: float


@dataclass(frozen=True)
class Round:
    """The events of each sender, and the processes to kill."""

    operations: tuple[tuple[Operation, ...], ...]
    kill: Kill


@dataclass(frozen=True)
class Program:
    """`stored` is the model answer: what is in the index at the end, by id. Versions of 0 may be any."""

    rounds: list[Round]
    stored: dict[str, Document] = field(default_factory=dict)

    @property
    def operations(self) -> Iterator[Operation]:
        """All that is sent."""
        return (one for part in self.rounds for sender in part.operations for one in sender)

    @property
    def kills(self) -> Iterator[str]:
        """The victim of every SIGKILL."""
        return (victim for part in self.rounds for victim in part.kill.victims)


def make_program(
    seed: int, document_count: int, kills_of_each: int, qdrant_names: Sequence[str] = (QDRANT,)
) -> Program:
    """The same for the same arguments.

    Args:
        qdrant_names: the processes of Qdrant that are killed, one at a time. They begin with QDRANT.
    """
    generator = random.Random(seed)
    histories = [_history(generator, number) for number in range(document_count)]
    senders = _schedule(generator, histories)
    victims = ("redis", *qdrant_names, "encoder", "matcher-1", "matcher-2", "worker-1", "worker-2")
    kills = _kills(generator, [victim for victim in victims for _ in range(kills_of_each)])
    rounds = [
        Round(tuple(tuple(_part(sender, number, len(kills))) for sender in senders), kill)
        for number, kill in enumerate(kills)
    ]
    return Program(rounds, {last.id: last for *_, last in histories if isinstance(last, Document)})


def _history(generator: random.Random, number: int) -> list[Operation]:
    """The events of one document in the order of their versions."""
    has_versions = generator.random() >= _UNVERSIONED_SHARE
    version = generator.randrange(1, 1_000) if has_versions else 0
    written = Document(f"文档-{number}", _text(generator, number), {"revision": 1}, version)
    events: list[Operation] = [written]
    if generator.random() < _UPDATED_SHARE:
        version += has_versions
        keeps_text = generator.random() < _SAME_TEXT_SHARE
        text = written.text if keeps_text else _text(generator, number)
        events.append(Document(written.id, text, {"revision": 2}, version))
    if generator.random() < _DELETED_SHARE:
        version += has_versions
        events.append(Delete(written.id, version or None))
        if generator.random() < _REVIVED_SHARE:
            version += has_versions
            events.append(Document(written.id, _text(generator, number), {"revision": 3}, version))
    return events


def _text(generator: random.Random, number: int) -> str:
    if generator.random() >= _LONG_SHARE:
        return f"{_words(generator, generator.randrange(2, 10))} {number}"
    count = generator.randint(2, _MAX_SENTENCES)
    return " ".join(f"{number} {_words(generator, _SENTENCE_WORDS)}. " for _ in range(count)).strip()


def _words(generator: random.Random, count: int) -> str:
    words = ("the", "cat", "dog", "sits", "on", "mat", "runs", "in", "park", "猫", "狗")
    return " ".join(generator.choices(words, k=count))


def _schedule(generator: random.Random, histories: Sequence[list[Operation]]) -> list[list[Operation]]:
    """What each sender sends, in order."""
    timed: list[list[tuple[float, Operation]]] = [[] for _ in range(SENDERS)]
    for events in histories:
        copies = [event for event in events for _ in range(generator.randint(1, _MAX_COPIES))]
        times = _times(generator, len(copies))
        first = events[0]
        if isinstance(first, Document) and first.version:
            for time, copy in zip(times, copies, strict=True):
                generator.choice(timed).append((time, copy))
        else:
            generator.choice(timed).extend(zip(sorted(times), copies, strict=True))
    for sender in timed:
        sender.sort(key=lambda pair: pair[0])
    return [[operation for _, operation in sender] for sender in timed]


def _times(generator: random.Random, count: int) -> list[float]:
    """When the copies are sent, 0 to 1 from the begin to the end of the run."""
    if generator.random() < _HOT_SHARE:
        start = generator.random()
        return [start + _HOT_WIDTH * generator.random() for _ in range(count)]
    return [generator.random() for _ in range(count)]


def _kills(generator: random.Random, victims: list[str]) -> list[Kill]:
    generator.shuffle(victims)
    # No process is killed twice in a row: it would not have restarted.
    while any(one == other for one, other in pairwise(victims)):
        generator.shuffle(victims)
    kills = []
    while victims:
        count = 2 if len(victims) > 1 and generator.random() < _DOUBLE_KILL_SHARE else 1
        # Documents have two copies: no two nodes of a cluster are killed together.
        if all(victim.startswith(QDRANT) for victim in victims[:count]):
            count = 1
        together, victims = tuple(victims[:count]), victims[count:]
        delay, down = generator.uniform(0, _MAX_DELAY_SECONDS), generator.uniform(0, _MAX_DOWN_SECONDS)
        kills.append(Kill(together, delay, down))
    return kills


def _part(operations: Sequence[Operation], number: int, count: int) -> Sequence[Operation]:
    """One of `count` parts of about the same size."""
    size = len(operations)
    return operations[number * size // count : (number + 1) * size // count]
