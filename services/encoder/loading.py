"""Load the models and run them once. The only module of the encoder that reaches torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import disable_progress_bar

from services.encoder import metrics
from services.encoder.batching import BatchPolicy
from services.encoder.jobs import EngineModel, Rows
from services.encoder.locating import FoundModel, FoundModels
from services.encoder.served import Served, ServedModels
from services.encoder.settings import EncoderSettings
from textmatch.models.bi_encoder import BiEncoder
from textmatch.models.cross_encoder import CrossEncoder
from textmatch.models.devices import resolve_device, resolve_dtype
from textmatch.models.engines import EngineOptions
from textmatch.models.tokens import TokenizedText

_log = logging.getLogger(__name__)

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


def load_models(found: FoundModels, settings: EncoderSettings) -> Loaded:
    """Load and warm up all models; takes some seconds.

    Raises:
        UnusableModel: one cannot be served.
        UnusableDevice: there is no such device.
    """
    _quieten_libraries()
    device = resolve_device(settings.device)
    policy = _policy(settings, device)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    bi_encoders = [_load_bi_encoder(model, settings, device) for model in found.bi_encoders]
    cross_encoders = [_load_cross_encoder(model, settings, device) for model in found.cross_encoders]
    speeds = [_warm_up(served.engine_model, policy) for served in bi_encoders]
    speeds += [_warm_up(served.engine_model, policy) for served in cross_encoders]
    if device != "cpu":
        metrics.DEVICE_MEMORY_BYTES.labels(device).set_function(lambda: torch.cuda.memory_allocated(device))
    threads = torch.get_num_threads()
    return Loaded(
        ServedModels(bi_encoders, cross_encoders),
        policy,
        speed=speeds[0],
        prepare_thread=lambda: torch.set_num_threads(threads),
    )


def _load_bi_encoder(found: FoundModel, settings: EncoderSettings, device: str) -> Served[BiEncoder]:
    model = BiEncoder.load(
        found.directory,
        found.name,
        device=device,
        dtype=resolve_dtype(settings.dtype, device),
        max_tokens=settings.max_tokens or None,
        engine=_engine_options(settings),
    )
    _announce(model, "bi-encoder")
    sample = model.tokenize([_SAMPLE], is_query=False)[0]
    return Served(model, EngineModel(model.model_id, model.embed, sample, model.is_packed))


def _load_cross_encoder(found: FoundModel, settings: EncoderSettings, device: str) -> Served[CrossEncoder]:
    model = CrossEncoder.load(
        found.directory,
        found.name,
        device=device,
        dtype=resolve_dtype(settings.dtype, device),
        max_tokens=settings.max_tokens or None,
        engine=_engine_options(settings),
    )
    _announce(model, "cross-encoder")

    def forward(batch: Sequence[TokenizedText]) -> Rows:
        rows: Rows = np.column_stack(model.score(batch))  # (count, 2): score and raw score
        return rows

    sample = model.tokenize_pairs([(_SAMPLE, _SAMPLE)])[0]
    return Served(model, EngineModel(model.model_id, forward, sample, model.is_packed))


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


def _warm_up(model: EngineModel, policy: BatchPolicy) -> tuple[int, float]:
    """Run batches of all sizes, the largest twice: an engine prepares itself for each shape it meets first.

    Returns:
        Tokens of the full batch, and the seconds it took.
    """
    count = max(1, policy.token_budget // model.sample.token_count)
    for size in sorted({1, 2, 4, *(count * eighths // 8 for eighths in range(1, 9))} - {0}):
        model.forward([model.sample] * size)
    started = time.perf_counter()
    model.forward([model.sample] * count)
    return count * model.sample.token_count, time.perf_counter() - started


def _announce(model: BiEncoder | CrossEncoder, kind: str) -> None:
    metrics.MODEL_INFO.labels(model.model_id, model.name, kind, model.engine, model.dtype, model.device).set(
        1
    )
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
