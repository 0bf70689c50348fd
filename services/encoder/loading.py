"""Load the models and run them once. Torch is imported only for models that cannot do without it.

Where the models lie that the settings name: told before torch, which takes seconds, is imported.

Convert models for their engine in a process of its own: `python -m services.encoder.loading`.

OpenVINO holds Python's lock for seconds while it converts a model, and so does torch while it is imported,
which the native engine needs for a model that is not in the cache: even in a thread of their own they would
hold up all callers of the encoder. Converted here, the model lies in the cache, which the encoder loads it
from.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from services.encoder.batching import BatchPolicy, EngineModel, Rows, RunPass, run_inline
from services.encoder.model_registry import BiEncoder, CrossEncoder, ModelRegistry, Served
from services.encoder.settings import NO_MODEL, EncoderSettings, from_environment
from textmatch.errors import TextMatchError
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.model_cache import UnreadableCache
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    CROSS_ENCODER_ORGANISATION,
    UnusableModel,
    find_model,
)
from textmatch.models.native.kernel import NAME as NATIVE
from textmatch.models.native.kernel import kernel_is_usable
from textmatch.models.native_models import PreparedBiEncoder, PreparedCrossEncoder
from textmatch.runtime.process import trim_heap

if TYPE_CHECKING:
    from services.encoder.torch_loader import TorchLoader


@dataclass(frozen=True)
class FoundModel:
    """A model that is there, under the name it was asked for."""

    name: str
    directory: Path


@dataclass(frozen=True)
class FoundModels:
    """All models to load; the first of each kind is its default."""

    bi_encoders: Sequence[FoundModel]
    cross_encoders: Sequence[FoundModel]


def find_models(settings: EncoderSettings) -> FoundModels:
    """Find them, and fetch those that only the hub has.

    Raises:
        ModelNotFound: there is no such model.
        UnusableModel: it has no weights in safetensors.
    """
    names = [name.strip() for name in settings.bi_encoder.split(",")]
    cross_names = [] if settings.cross_encoder == NO_MODEL else [settings.cross_encoder]
    return FoundModels(
        [FoundModel(name, find_model(name, BI_ENCODER_ORGANISATION)) for name in names],
        [FoundModel(name, find_model(name, CROSS_ENCODER_ORGANISATION)) for name in cross_names],
    )


_log = logging.getLogger(__name__)

Model = TypeVar("Model")

_SAMPLE = "How far is it from here to the sea?"
# On a CPU a pass of all-MiniLM-L6-v2 costs about 6 ms before its first token; a GPU waits for its launches.
_CPU_BATCH_TOKENS, _CPU_FORWARD_COST_TOKENS = 2048, 64
# Full speed already, and a single text waits half as long for the batch that runs.
_NATIVE_BATCH_TOKENS = 1024
_GPU_BATCH_TOKENS, _GPU_FORWARD_COST_TOKENS = 32_768, 2048
# Where Linux shows NVIDIA's devices: asking torch for them would take seconds.
_DEVICES, _GPU = Path("/dev"), "nvidia[0-9]*"


@dataclass(frozen=True)
class Loaded:
    """The models, and how to batch on the device they are on.

    `speed` is what a full batch of the first model took: tokens and seconds. `prepare_thread` sets up the
    thread that the models run in.
    """

    models: ModelRegistry
    policy: BatchPolicy
    speed: tuple[int, float]
    prepare_thread: Callable[[], None]


class _Loader:
    """Takes from the cache what needs no torch, and has torch load the rest."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._may_prepare = _runs_native(settings)
        if self._may_prepare:
            # After each product of numpy's, its threads spin for a while against those of the kernel.
            threadpool_limits(limits=1, user_api="blas")
        self._torch: TorchLoader | None = None

    @property
    def device(self) -> str:
        return self._torch.device if self._torch else "cpu"

    @property
    def prepare_thread(self) -> Callable[[], None]:
        return self._torch.prepare_thread() if self._torch else lambda: None

    def bi_encoder(self, found: FoundModel) -> BiEncoder:
        with _unusable(f'cannot load "{found.name}"'):
            prepared = self._prepared(PreparedBiEncoder.load, found)
            return prepared or self._with_torch.bi_encoder(found)

    def cross_encoder(self, found: FoundModel) -> CrossEncoder:
        with _unusable(f'cannot load "{found.name}"'):
            prepared = self._prepared(PreparedCrossEncoder.load, found)
            return prepared or self._with_torch.cross_encoder(found)

    def _prepared(self, load: Callable[..., Model], found: FoundModel) -> Model | None:
        if not self._may_prepare:
            return None
        settings = self._settings
        try:
            return load(
                found.directory,
                found.name,
                settings.cache_directory,
                threads=settings.threads or len(os.sched_getaffinity(0)),
                max_tokens=settings.max_tokens or None,
            )
        except UnreadableCache as error:
            _log.info("not in the cache yet", extra={"model": found.name, "reason": str(error)})
            return None

    @cached_property
    def _with_torch(self) -> TorchLoader:
        from services.encoder.torch_loader import TorchLoader

        self._torch = TorchLoader(self._settings)
        return self._torch


def _runs_native(settings: EncoderSettings) -> bool:
    """Whether the native engine is what a model would get, as far as can be told without torch."""
    is_cpu = settings.device == "cpu" or (settings.device == "auto" and not any(_DEVICES.glob(_GPU)))
    is_chosen = settings.engine in ("auto", NATIVE) and settings.dtype in ("auto", "bfloat16")
    return is_cpu and is_chosen and kernel_is_usable()


def make_models(found: FoundModels, settings: EncoderSettings) -> ModelRegistry:
    """Load all models, but do not warm them up.

    Raises:
        UnusableModel: one cannot be served.
        UnusableDevice: there is no such device.
    """
    return _make_models(found, _Loader(settings))


def load_models(found: FoundModels, settings: EncoderSettings, run_pass: RunPass = run_inline) -> Loaded:
    """Load and warm up all models; takes some seconds if they are not in the cache.

    What a model computes while it is made, nobody else can see yet, so that it may do so in this thread.

    Args:
        found: the models.
        settings: how to run them.
        run_pass: runs each pass that warms a model up; in this thread, unless an engine has one for models.

    Raises:
        UnusableModel: one cannot be served.
        UnusableDevice: there is no such device.
    """
    loader = _Loader(settings)
    models = _make_models(found, loader)
    policy = _policy(settings, models, loader.device)
    speeds = [_warm_up(served.engine_model, policy, run_pass) for served in models.bi_encoders]
    speeds += [_warm_up(served.engine_model, policy, run_pass) for served in models.cross_encoders]
    trim_heap()
    return Loaded(models, policy, speed=speeds[0], prepare_thread=loader.prepare_thread)


def _make_models(found: FoundModels, loader: _Loader) -> ModelRegistry:
    return ModelRegistry(
        [_serve_bi_encoder(loader.bi_encoder(model)) for model in found.bi_encoders],
        [_serve_cross_encoder(loader.cross_encoder(model)) for model in found.cross_encoders],
    )


def _serve_bi_encoder(model: BiEncoder) -> Served[BiEncoder]:
    _announce(model, "bi-encoder")
    sample = model.tokenize([_SAMPLE], is_query=False)[0]
    return Served(model, EngineModel(model.model_id, model.embed, sample, model.is_packed))


def _serve_cross_encoder(model: CrossEncoder) -> Served[CrossEncoder]:
    _announce(model, "cross-encoder")

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        rows: Rows = np.column_stack(model.score(batch))  # (count, 2): score and raw score
        return rows

    sample = model.tokenize_pairs([(_SAMPLE, _SAMPLE)])[0]
    return Served(model, EngineModel(model.model_id, forward, sample, model.is_packed))


def _policy(settings: EncoderSettings, models: ModelRegistry, device: str) -> BatchPolicy:
    is_cpu = device == "cpu"
    is_native = all(model.engine == NATIVE for model in models.all_models())
    cpu_tokens = _NATIVE_BATCH_TOKENS if is_native else _CPU_BATCH_TOKENS
    return BatchPolicy(
        token_budget=settings.batch_tokens or (cpu_tokens if is_cpu else _GPU_BATCH_TOKENS),
        bulk_share=settings.bulk_share,
        forward_cost_tokens=_CPU_FORWARD_COST_TOKENS if is_cpu else _GPU_FORWARD_COST_TOKENS,
    )


def _warm_up(model: EngineModel, policy: BatchPolicy, run_pass: RunPass) -> tuple[int, float]:
    """Run batches of all sizes, the largest twice: an engine prepares itself for each shape it meets first.

    Returns:
        Tokens of the full batch, and the seconds it took.
    """
    count = max(1, policy.token_budget // model.sample.token_count)
    sizes = sorted({1, 2, 4, *(count * eighths // 8 for eighths in range(1, 9))} - {0})
    with _unusable(f"{model.model_id} fails while it is warmed up"):
        for size in sizes:
            run_pass(partial(_pass_seconds, model, size))
        seconds = run_pass(partial(_pass_seconds, model, count))
    return count * model.sample.token_count, seconds


def _pass_seconds(model: EngineModel, size: int) -> float:
    started = time.perf_counter()
    model.forward([model.sample] * size)
    return time.perf_counter() - started


@contextmanager
def _unusable(complaint: str) -> Iterator[None]:
    """Whatever libraries raise about a model, here it is that the model cannot be used."""
    try:
        yield
    except TextMatchError:
        raise
    except Exception as error:
        raise UnusableModel(f"{complaint}: {error!r}") from error


def _announce(model: BiEncoder | CrossEncoder, kind: str) -> None:
    _log.info(
        "loaded",
        extra={
            "model_id": model.model_id,
            "kind": kind,
            "engine": model.engine,
            "dtype": model.dtype,
            "device": model.device,
        },
    )


_CONVERTING_ENGINES = ("openvino", "native")
# The encoder that serves meanwhile goes first.
_NICENESS = 10


async def convert_apart(served: ModelRegistry) -> None:
    """Convert the models that the settings name, if those that are served were converted.

    What is wrong with them is not told here: whoever loads them next meets it too.
    """
    if all(model.engine not in _CONVERTING_ENGINES for model in served.all_models()):
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.encoder.loading",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def main() -> None:
    """Load the models, which leaves what their engine made of them in the cache."""
    os.nice(_NICENESS)
    settings = from_environment()
    found = find_models(settings)
    from services.encoder.loading import make_models

    make_models(found, settings)


if __name__ == "__main__":
    main()
