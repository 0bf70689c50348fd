"""Every process is killed again and again while documents come in; then the index must be exactly right.

Two matchers and two workers have clocks that are up to an hour wrong and jump every few seconds.
A real Qdrant may take the place of the embedded one (tests/support/qdrant.py). Of a cluster, single nodes
are killed, and all copies are compared.

make chaos                    20,000 documents, a new seed
make chaos SEED=7             the run of that seed
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.chaos.outcome import compare, left_in_redis, read_index
from tests.chaos.processes import Victims, qdrant_names, running_victims
from tests.chaos.program import SENDERS, Delete, Operation, Program, Round, make_program
from tests.chaos.sender import send
from tests.support.collections import KEYS
from tests.support.encoder import make_tiny_bi_encoder
from textmatch.documents import is_passage_point

SEED = int(os.environ.get("TEXTMATCH_CHAOS_SEED", "1"))
DOCUMENTS = int(os.environ.get("TEXTMATCH_CHAOS_DOCUMENTS", "2000"))
KILLS_OF_EACH = int(os.environ.get("TEXTMATCH_CHAOS_KILLS", "2"))

# Long texts have up to 40 passages.
MODEL_TOKENS = 32
SETTLED_SECONDS = 300.0
# A process that has nothing to do is no good victim; but it is killed at last.
BUSY_SECONDS = 2.0


# `make chaos` goes on for as long as it is told to.
@pytest.mark.timeout(0)
def test_every_kill_leaves_the_index_exactly_right(tmp_path: Path):
    program = make_program(SEED, DOCUMENTS, KILLS_OF_EACH, qdrant_names())
    print(f"seed {SEED}: {_describe(program)}")
    make_tiny_bi_encoder(tmp_path / "model", max_tokens=MODEL_TOKENS)
    settings = {
        "TEXTMATCH_BI_ENCODER": str(tmp_path / "model"),
        "TEXTMATCH_CROSS_ENCODER": "none",
        "TEXTMATCH_ENGINE": "torch",
        "TEXTMATCH_ENCODER_THREADS": "1",
        "TEXTMATCH_WORKER_VISIBILITY_TIMEOUT_SECONDS": "3",
        "TEXTMATCH_WORKER_SWEEP_SECONDS": "0.5",
    }
    started = time.monotonic()
    with running_victims(tmp_path, settings) as victims:
        state = redis.Redis(port=victims.ports.redis)
        for part in program.rounds:
            _run(part, victims, state)
        sent_after = time.monotonic() - started
        victims.wait_until_ready()
        left = _wait_until_settled(state)
        with victims.client() as client:
            collection = client.ingest_status().collection
            reads = read_index(victims.qdrant, victims.qdrant_nodes, collection)
            outcome = compare(reads, program.stored, client)
    print(f"sent after {sent_after:.0f} s, settled after {time.monotonic() - started:.0f} s: {outcome}")
    assert not any(left.values()), f"seed {SEED}: left in Redis: {left}"
    assert outcome.is_good, f"seed {SEED}: {outcome}"
    documents = [one for one in reads[0] if not is_passage_point(str(one.id))]
    assert len(documents) == len(program.stored)
    assert len(reads[0]) > 1.5 * len(documents), "there are too few passages"


def _run(part: Round, victims: Victims, state: redis.Redis) -> None:
    with ThreadPoolExecutor(SENDERS + 1) as threads:
        killing = threads.submit(_kill, part, victims, state)
        sending = [threads.submit(_send, victims, operations) for operations in part.operations]
        for task in [*sending, killing]:
            task.result()


def _send(victims: Victims, operations: Sequence[Operation]) -> None:
    with victims.client() as client:
        send(client, operations)


def _kill(part: Round, victims: Victims, state: redis.Redis) -> None:
    time.sleep(part.kill.delay_seconds)
    _wait_until_busy(state)
    victims.kill(part.kill.victims, part.kill.down_seconds)


def _wait_until_busy(state: redis.Redis) -> None:
    """Until a worker holds a message, if that comes soon."""
    deadline = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < deadline:
        with suppress(redis.exceptions.RedisError):
            if state.hlen(KEYS.unacked):
                return
        time.sleep(0.01)


def _wait_until_settled(state: redis.Redis) -> dict[str, int]:
    """What is left in Redis once nothing moves any more."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while any((left := left_in_redis(state)).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _describe(program: Program) -> str:
    operations = list(program.operations)
    deletes = sum(isinstance(one, Delete) for one in operations)
    kills = ", ".join(f"{name} {count}" for name, count in sorted(Counter(program.kills).items()))
    return (
        f"{DOCUMENTS} documents, {len(operations)} operations sent ({deletes} deletes),"
        f" {len(program.stored)} to be stored, kills: {kills}"
    )
