"""SIGHUP: the running encoder replaces its models, and callers see only another model id."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from tests.support.encoder import (
    make_tiny_bi_encoder,
    make_tiny_cross_encoder,
    spawn_encoder,
    wait_until_serving,
)
from tests.support.redis import free_port
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.v1 import encoder_service_pb2 as pb
from textmatch.v1 import encoder_service_pb2_grpc as pb_grpc

_TEXTS = ["the cat sits on the mat", "a dog", "where is the park?"]
_SERVING = health_pb2.HealthCheckResponse.SERVING


class RunningEncoder:
    """A process that serves the directory `served`; others can be put in its place."""

    def __init__(self, base: Path, engine: str) -> None:
        self.served = make_tiny_bi_encoder(base / "served")
        cross_encoder = make_tiny_cross_encoder(base / "pairs")
        self.log = base / "log"
        self._metrics_port = free_port()
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        environment = {
            "TEXTMATCH_ENCODER_PORT": str(port),
            "TEXTMATCH_ENCODER_METRICS_PORT": str(self._metrics_port),
            "TEXTMATCH_BI_ENCODER": str(self.served),
            "TEXTMATCH_CROSS_ENCODER": str(cross_encoder),
            "TEXTMATCH_ENCODER_DTYPE": "float32",
            "TEXTMATCH_ENGINE": engine,
            "TEXTMATCH_CACHE_DIR": str(base / "cache"),
            "TEXTMATCH_LOG_LEVEL": "INFO",
        }
        with self.log.open("w") as log:
            self.process = spawn_encoder(environment, stderr=log)

    def swap(self, directory: Path | None) -> None:
        """Put another directory, or none, where the served one is."""
        self.served.rename(self.served.with_name(f"replaced-{time.monotonic_ns()}"))
        if directory is not None:
            directory.rename(self.served)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def lines(self, message: str, level: str = "INFO") -> list[str]:
        """Its log messages of this level that start with `message`."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        of_level = [entry["message"] for entry in entries if entry["level"] == level]
        return [found for found in of_level if found.startswith(message)]

    def metric(self, name: str) -> float:
        return self.metrics().get(name, 0.0)

    def reloads(self, result: str) -> float:
        return self.metric(f'textmatch_encoder_reloads_total{{result="{result}"}}')

    def shown_models(self) -> list[str]:
        """The bi-encoders in `model_info`."""
        infos = [name for name in self.metrics() if "model_info{" in name and 'kind="bi-encoder"' in name]
        return [name.partition('model_id="')[2].partition('"')[0] for name in infos]

    def metrics(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self._metrics_port}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


@dataclass
class Answers:
    """Responses in the order of the calls; a failed call ends the test."""

    encoded: list[list[pb.EncodeResponse]] = field(default_factory=list)
    health: list[int] = field(default_factory=list)


@pytest.fixture(params=["torch"])
def encoder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningEncoder]:
    encoder = RunningEncoder(tmp_path, request.param)
    yield encoder
    encoder.process.kill()
    encoder.process.wait()


@asynccontextmanager
async def _load(address: str) -> AsyncIterator[Answers]:
    """Calls of all kinds without a pause or a retry, and a watch on the health service."""
    channel = grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)])
    stub = pb_grpc.EncoderServiceStub(channel)
    answers = Answers()
    stopped = asyncio.Event()

    async def encode(priority: pb.Priority.ValueType, copies: int) -> None:
        answers.encoded.append([])
        mine = answers.encoded[-1]
        while not stopped.is_set():
            request = pb.EncodeRequest(texts=_TEXTS * copies, priority=priority)
            mine.append(await stub.Encode(request, timeout=30))

    async def score() -> None:
        while not stopped.is_set():
            await stub.Score(pb.ScoreRequest(query="the cat", texts=_TEXTS), timeout=30)

    async def watch() -> None:
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
            answers.health.append(answer.status)

    watching = asyncio.create_task(watch())
    callers = [asyncio.create_task(encode(pb.PRIORITY_INTERACTIVE, copies)) for copies in (1, 1, 1, 4)]
    callers += [asyncio.create_task(encode(pb.PRIORITY_BULK, copies=30)), asyncio.create_task(score())]
    try:
        yield answers
    finally:
        stopped.set()
        await asyncio.gather(*callers)
        watching.cancel()
        await channel.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 -- the condition changes in a process
            await asyncio.sleep(0.02)


def _bi_encoder(directory: Path) -> TorchBiEncoder:
    return TorchBiEncoder.load(directory, str(directory))


def _expected(model: TorchBiEncoder) -> NDArray[np.float32]:
    embedded: NDArray[np.float32] = model.embed(model.tokenize(_TEXTS, is_query=False))
    return embedded


def _rows(response: pb.EncodeResponse) -> NDArray[np.float32]:
    return np.frombuffer(response.embeddings, dtype="<f4").reshape(-1, response.dimension)


def _served_id(encoder: RunningEncoder) -> str:
    return str(_encode(encoder).model_id)


def _encode(encoder: RunningEncoder) -> pb.EncodeResponse:
    with grpc.insecure_channel(encoder.address, [("grpc.enable_retries", 0)]) as channel:
        return pb_grpc.EncoderServiceStub(channel).Encode(pb.EncodeRequest(texts=_TEXTS), timeout=30)


async def test_models_change_under_load_without_a_failed_call(encoder: RunningEncoder, tmp_path: Path):
    old = _bi_encoder(encoder.served)
    other = make_tiny_bi_encoder(tmp_path / "other", seed=12)
    await asyncio.to_thread(wait_until_serving, encoder.process, encoder.address)
    async with _load(encoder.address) as answers:
        await _until(lambda: all(len(mine) >= 3 for mine in answers.encoded))
        encoder.swap(other)
        encoder.reload()
        await _until(lambda: encoder.reloads("done") == 1)
        served_on = [len(mine) for mine in answers.encoded]
        await _until(
            lambda: all(len(mine) > count + 3 for mine, count in zip(answers.encoded, served_on, strict=True))
        )
    new = _bi_encoder(encoder.served)
    assert new.model_id != old.model_id
    expected = {model.model_id: _expected(model) for model in (old, new)}
    for mine in answers.encoded:
        ids = [response.model_id for response in mine]
        assert ids == sorted(ids, key=[old.model_id, new.model_id].index)
        assert {ids[0], ids[-1]} == {old.model_id, new.model_id}
        for response in mine:
            copies = len(response.token_counts) // len(_TEXTS)
            wanted = np.tile(expected[response.model_id], (copies, 1))
            np.testing.assert_allclose(_rows(response), wanted, atol=1e-5)
    assert set(answers.health) == {_SERVING}
    assert encoder.shown_models() == [new.model_id]
    assert encoder.reloads("failed") == 0
    assert encoder.lines("", "ERROR") == encoder.lines("", "WARNING") == []


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["openvino"], indirect=True)
async def test_a_model_to_convert_is_converted_by_another_process(encoder: RunningEncoder, tmp_path: Path):
    pytest.importorskip("openvino")
    other = make_tiny_bi_encoder(tmp_path / "other", seed=12)
    await asyncio.to_thread(wait_until_serving, encoder.process, encoder.address)
    encoder.swap(other)
    new = _bi_encoder(encoder.served)
    encoder.reload()
    seen: set[int] = set()

    def is_converted() -> bool:
        seen.update(child.pid for child in psutil.Process(encoder.process.pid).children())
        return any((tmp_path / "cache").glob(f"{new.model_id}-*.xml"))

    await _until(is_converted)
    assert seen
    assert len(encoder.lines("loaded")) == 2
    await _until(lambda: encoder.reloads("done") == 1)
    response = await asyncio.to_thread(_encode, encoder)
    assert response.model_id == new.model_id
    np.testing.assert_allclose(_rows(response), _expected(new), atol=1e-3)


async def test_models_that_cannot_be_served_leave_the_old_ones_serving(
    encoder: RunningEncoder, tmp_path: Path
):
    old_id = _bi_encoder(encoder.served).model_id
    truncated = make_tiny_bi_encoder(tmp_path / "truncated", seed=12)
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    broken = make_tiny_bi_encoder(tmp_path / "broken", seed=13)
    _break_weights(broken)
    good = make_tiny_bi_encoder(tmp_path / "good", seed=14)
    await asyncio.to_thread(wait_until_serving, encoder.process, encoder.address)
    async with _load(encoder.address) as answers:
        for failures, directory in enumerate((truncated, broken, None), start=1):
            encoder.swap(directory)
            encoder.reload()
            await _until(lambda wanted=failures: encoder.reloads("failed") == wanted)
            assert len(encoder.lines("cannot reload", "ERROR")) == failures
            if directory is None:
                encoder.served.mkdir()
        assert await asyncio.to_thread(_served_id, encoder) == old_id
        assert encoder.shown_models() == [old_id]
        encoder.swap(good)
        encoder.reload()
        await _until(lambda: encoder.reloads("done") == 1)
    assert _served_id(encoder) == _bi_encoder(encoder.served).model_id != old_id
    assert set(answers.health) == {_SERVING}
    start = "cannot reload; the old models keep serving: "
    reasons = [line.removeprefix(start) for line in encoder.lines("", "ERROR")]
    assert reasons[0].startswith(f'cannot load "{encoder.served}"')
    assert "header" in reasons[0].lower()
    assert "not finite" in reasons[1]
    assert reasons[2].startswith(f'no model "{encoder.served}"')


async def test_signals_during_a_start_and_during_a_reload_lead_to_one_more_reload(
    encoder: RunningEncoder, tmp_path: Path
):
    other = make_tiny_bi_encoder(tmp_path / "other", seed=12)
    async with grpc.aio.insecure_channel(encoder.address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 60)
    assert encoder.lines("serving") == []
    encoder.reload()
    await _until(lambda: len(encoder.lines("reloading the models")) == 1)
    encoder.reload()
    encoder.reload()
    await _until(lambda: encoder.reloads("done") == 2)
    order = [line for line in encoder.lines("") if line.startswith(("reload", "serving"))]
    assert order == ["serving", *["reloading the models", "reloaded"] * 2]
    assert encoder.shown_models() == [_served_id(encoder)]

    encoder.swap(other)
    encoder.reload()
    await _until(lambda: len(encoder.lines("reloading the models")) == 3)
    encoder.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(encoder.process.wait, 60) == 0
    assert encoder.lines("", "ERROR") == []


def _break_weights(directory: Path) -> None:
    """Leave the files whole and make every embedding NaN."""
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = {name: tensor * float("nan") for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
