"""Two encoders and two matchers behind client-side balancing: each is restarted in turn, no call fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.encoder import is_serving, make_tiny_bi_encoder, make_tiny_cross_encoder
from tests.support.qdrant import running_qdrant
from tests.support.redis import RedisServer, free_port
from tests.support.stack import wait_until
from textmatch.client import TextMatchClient
from textmatch.errors import TextMatchError

MIN_CALLS = 5_000
CALLERS = 4
DOCUMENTS = 40


class Replica:
    """One process that is ended by SIGTERM and started again on the same port, as a rolling update does."""

    def __init__(self, module: str, environment: dict[str, str], log: Path) -> None:
        self.port = free_port()
        self._module = module
        name = module.rpartition(".")[2].upper()
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TEXTMATCH_ENCODER_THREADS": "1",
            "TEXTMATCH_DRAIN_SECONDS": "20",
            # Far more often than in production: connections must end during the restarts too.
            "TEXTMATCH_CONNECTION_AGE_SECONDS": "2",
            **environment,
            f"TEXTMATCH_{name}_PORT": str(self.port),
            f"TEXTMATCH_{name}_METRICS_PORT": "0",
        }
        self._log = log

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", self._module]
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        wait_until(lambda: is_serving(f"127.0.0.1:{self.port}"), self._module, seconds=120)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0


class Load:
    """Callers that match, embed and store without a pause until they are told to stop."""

    def __init__(self, matcher_target: str, encoder_target: str) -> None:
        self._targets = (matcher_target, encoder_target)
        self._stopped = threading.Event()
        self.calls: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, caller: int) -> None:
        with TextMatchClient(*self._targets, timeout_seconds=30, bulk_timeout_seconds=30) as client:
            turns = {
                "match": lambda turn: client.match(f"the cat {turn} sits", top_k=3),
                "encode": lambda turn: client.encode([f"dog {turn}"]),
                "score": lambda turn: client.score("the cat", [f"the dog {turn}"]),
                "batch_match": lambda turn: [one.result for one in client.batch_match([f"cat {turn}"])],
                "ingest": lambda turn: client.ingest_all([{"id": f"{caller}-{turn}", "text": "the cat"}]),
                "get_document": lambda turn: client.get_document("stored-1"),
            }
            turn = 0
            while not self._stopped.is_set():
                for name, call in turns.items():
                    self._call(name, call, turn)
                turn += 1

    def _call(self, name, call, turn: int) -> None:
        self.calls[name] += 1
        try:
            answer = call(turn)
        except TextMatchError as error:
            self.failures.append(f"{name}: {type(error).__name__}: {error}")
            return
        if name == "ingest" and answer.rejected:
            self.failures.append(f"{name}: {answer.rejections}")


@pytest.fixture
def qdrant_url(tmp_path: Path) -> Iterator[str]:
    with running_qdrant(tmp_path / "qdrant") as url:
        yield url


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_no_call_fails_while_every_encoder_and_matcher_is_restarted(
    tmp_path: Path, qdrant_url: str, redis: RedisServer
):
    environment = {
        "TEXTMATCH_BI_ENCODER": str(make_tiny_bi_encoder(tmp_path / "bi-encoder")),
        "TEXTMATCH_CROSS_ENCODER": str(make_tiny_cross_encoder(tmp_path / "cross-encoder")),
        "TEXTMATCH_CACHE_DIR": str(tmp_path / "cache"),
        "TEXTMATCH_QDRANT_URL": qdrant_url,
        "TEXTMATCH_REDIS_URL": redis.url,
    }
    encoders = [Replica("services.encoder", environment, tmp_path / f"encoder{n}.log") for n in range(2)]
    environment["TEXTMATCH_ENCODER_TARGET"] = target_of(encoders)
    matchers = [Replica("services.matcher", environment, tmp_path / f"matcher{n}.log") for n in range(2)]
    replicas = [*encoders, *matchers]
    worker_environment = {**os.environ, **environment, "TEXTMATCH_WORKER_METRICS_PORT": "0"}
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen([sys.executable, "-m", "workers"], env=worker_environment, stderr=log)
    for replica in replicas:
        replica.start()
    with TextMatchClient(target_of(matchers), target_of(encoders)) as client:
        documents = [{"id": f"stored-{n}", "text": f"the cat {n} sits"} for n in range(DOCUMENTS)]
        client.ingest_all(documents, wait=True)

    load = Load(target_of(matchers), target_of(encoders))
    load.start()
    for replica in replicas:
        replica.stop()
        time.sleep(0.5)  # the others bear the load alone
        replica.start()
        # Clients find the way back before the other one goes.
        time.sleep(3)
    wait_until(lambda: load.calls.total() >= MIN_CALLS or bool(load.failures), "calls", seconds=240)
    load.stop()
    print(dict(load.calls), f"{len(load.failures)} failed")

    worker.send_signal(signal.SIGTERM)
    for replica in replicas:
        replica.stop()
    assert worker.wait(60) == 0
    assert load.failures == []
    assert load.calls.total() >= MIN_CALLS
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert '"level": "ERROR"' not in logs


def target_of(replicas: list[Replica]) -> str:
    """As gRPC names several addresses, among which the channel balances."""
    return "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
