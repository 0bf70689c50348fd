"""Load the models and run them once. The only module of the encoder that reaches torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import disable_progress_bar

from services.encoder import metrics
from services.encoder.batching import BatchPolicy
from services.encoder.jobs import EngineModel, Rows, RunPass, run_here
from services.encoder.locating import FoundModel, FoundModels
from services.encoder.memory import give_back_memory
from services.encoder.served import Served, ServedModels
from services.encoder.settings import EncoderSettings
from textmatch.errors import TextMatchError
from textmatch.models.bi_encoder import BiEncoder
from textmatch.models.cross_encoder import CrossEncoder
from textmatch.models.devices import resolve_device, resolve_dtype
from textmatch.models.engines import EngineOptions
from textmatch.models.resolve import UnusableModel
from textmatch.models.tokens import TokenizedText

_log = logging.getLogger(__name__)

Model = TypeVar("Model", BiEncoder, CrossEncoder)

_SAMPLE = "How far is it from here to the sea?"
# On a CPU a pass of all-MiniLM-L6-v2 costs about 6 ms before its first token; a GPU waits for its launches.
_CPU_BATCH_TOKENS, _CPU_FORWARD_COST_TOKENS = 2048, 64
_GPU_BATCH_TOKENS, _GPU_FORWARD_COST_TOKENS = 32_768, 2048


@dataclass(frozen=True)
class Loaded:
    """The models, and how to batch on the device they are on.

    `speed` is what a full batch of the first model took: tokens and seconds. `prepare_thread` sets up the
    thread that the models run in.
    """

    models: ServedModels
    policy: BatchPolicy
    speed: tuple[int, float]
    prepare_thread: Callable[[], None]


def make_models(found: FoundModels, settings: EncoderSettings) -> ServedModels:
    """Load all models, but do not warm them up.

    Raises:
        UnusableModel: one cannot be served.
        UnusableDevice: there is no such device.
    """
    _quieten_libraries()
    device = resolve_device(settings.device)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    return ServedModels(
        [_load_bi_encoder(model, settings, device) for model in found.bi_encoders],
        [_load_cross_encoder(model, settings, device) for model in found.cross_encoders],
    )


def load_models(found: FoundModels, settings: EncoderSettings, run_pass: RunPass = run_here) -> Loaded:
    """Load and warm up all models; takes some seconds.

    What a model computes while it is made, nobody else can see yet, so that it may do so in this thread.

    Args:
        found: the models.
        settings: how to run them.
        run_pass: runs each pass that warms a model up; in this thread, unless an engine has one for models.

    Raises:
        UnusableModel: one cannot be served.
        UnusableDevice: there is no such device.
    """
    models = make_models(found, settings)
    device = resolve_device(settings.device)
    policy = _policy(settings, device)
    speeds = [_warm_up(served.engine_model, policy, run_pass) for served in models.bi_encoders]
    speeds += [_warm_up(served.engine_model, policy, run_pass) for served in models.cross_encoders]
    if device != "cpu":
        metrics.DEVICE_MEMORY_BYTES.labels(device).set_function(lambda: torch.cuda.memory_allocated(device))
    give_back_memory()
    threads = torch.get_num_threads()
    return Loaded(
        models,
        policy,
        speed=speeds[0],
        prepare_thread=lambda: torch.set_num_threads(threads),
    )


def _load_bi_encoder(found: FoundModel, settings: EncoderSettings, device: str) -> Served[BiEncoder]:
    model = _load(BiEncoder, found, settings, device)
    _announce(model, "bi-encoder")
    sample = model.tokenize([_SAMPLE], is_query=False)[0]
    return Served(model, EngineModel(model.model_id, model.embed, sample, model.is_packed))


def _load_cross_encoder(found: FoundModel, settings: EncoderSettings, device: str) -> Served[CrossEncoder]:
    model = _load(CrossEncoder, found, settings, device)
    _announce(model, "cross-encoder")

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        rows: Rows = np.column_stack(model.score(batch))  # (count, 2): score and raw score
        return rows

    sample = model.tokenize_pairs([(_SAMPLE, _SAMPLE)])[0]
    return Served(model, EngineModel(model.model_id, forward, sample, model.is_packed))


def _load(model_class: type[Model], found: FoundModel, settings: EncoderSettings, device: str) -> Model:
    with _unusable(f'cannot load "{found.name}"'):
        return model_class.load(
            found.directory,
            found.name,
            device=device,
            dtype=resolve_dtype(settings.dtype, device),
            max_tokens=settings.max_tokens or None,
            engine=_engine_options(settings),
        )


def _engine_options(settings: EncoderSettings) -> EngineOptions:
    return EngineOptions(
        name=settings.engine,
        threads=settings.threads or torch.get_num_threads(),
        cache_directory=Path(settings.cache_dir).expanduser(),
    )


def _policy(settings: EncoderSettings, device: str) -> BatchPolicy:
    is_cpu = device == "cpu"
    return BatchPolicy(
        token_budget=settings.batch_tokens or (_CPU_BATCH_TOKENS if is_cpu else _GPU_BATCH_TOKENS),
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


def _quieten_libraries() -> None:
    """Transformers logs past the root logger and draws progress bars."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
