"""Find, load, warm up and convert the models that the settings name.

Torch takes seconds to import. It is imported only for models that are not in the cache of the native engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from threadpoolctl import threadpool_limits

from services.encoder import metrics
from services.encoder.batching import BatchPolicy, EngineModel, Rows
from services.encoder.model_registry import ModelRegistry, RegistryEntry, ServedBiEncoder, ServedCrossEncoder
from services.encoder.settings import NO_MODEL, EncoderSettings
from textmatch.documents import MAX_TEXT_BYTES
from textmatch.errors import TextMatchError
from textmatch.models.collapse import PROBES, ScoreSpread, score_spread
from textmatch.models.engines import NATIVE, OPENVINO, decide_engine
from textmatch.models.fast_tokenizer import TokenizedText
from textmatch.models.model_resolver import (
    BI_ENCODER_ORGANISATION,
    CROSS_ENCODER_ORGANISATION,
    UnusableModel,
    check_pinned,
    find_model,
)
from textmatch.models.native.kernel import UnreadableCache
from textmatch.models.native.models import NativeBiEncoder, NativeCrossEncoder
from textmatch.models.prompts import BadPrompts, Prompts, parse_prompts
from textmatch.runtime.process import trim_heap

if TYPE_CHECKING:
    from services.encoder.torch_loader import TorchLoader

_log = logging.getLogger(__name__)

Model = TypeVar("Model")
Served = TypeVar("Served", bound="ServedBiEncoder | ServedCrossEncoder")
# Calls a function that returns seconds in the thread that runs models.
RunPass: TypeAlias = Callable[[Callable[[], float]], float]

_SAMPLE = "How far is it from here to the sea?"
# Of the largest size that a text may have.
_LONG_SAMPLE = (_SAMPLE + " ") * (MAX_TEXT_BYTES // (len(_SAMPLE) + 1))
# The fixed cost of a pass of all-MiniLM-L6-v2: about 6 ms on a CPU, kernel launches on a GPU.
_CPU_FORWARD_COST_TOKENS, _GPU_FORWARD_COST_TOKENS = 64, 2048
# The native engine and GPUs reach full speed in such batches. OpenVINO and torch on a CPU need larger ones.
_BATCH_SECONDS, _SLOW_START_BATCH_SECONDS = 0.02, 0.06
# However fast the model is: larger batches are no more efficient, and need more memory.
_CPU_MAX_BATCH_TOKENS, _GPU_MAX_BATCH_TOKENS = 8_192, 65_536
_FIRST_WARM_UP_TOKENS = 256
_CONVERTING_ENGINES = (OPENVINO, NATIVE)


@dataclass(frozen=True)
class FoundModel:
    """The directory of a model, the requested name, and the prompts that the settings give a bi-encoder."""

    name: str
    directory: Path
    prompts: Prompts | None = None


@dataclass(frozen=True)
class FoundModels:
    """All models to load; the first of each kind is the default."""

    bi_encoders: Sequence[FoundModel]
    cross_encoders: Sequence[FoundModel]


@dataclass(frozen=True)
class LoadedModels:
    """The models, and how to batch on their device.

    `prepare_thread` sets up the thread that runs the models.
    """

    models: ModelRegistry
    policy: BatchPolicy
    prepare_thread: Callable[[], None]


def run_inline(function: Callable[[], float]) -> float:
    """Call the function in this thread: no inference thread runs yet."""
    return function()


def find_models(settings: EncoderSettings) -> FoundModels:
    """Find the models, unpack those that come packed, and download those that are only on the hub.

    Raises:
        ModelNotFound: there is no such model.
        UnusableModel: a model has no weights in safetensors, cannot be unpacked, or has no revision.
        BadPrompts: the setting of the prompts is not JSON, or names a model that is not loaded.
    """
    names = _names(settings.bi_encoder)
    cross_names = [] if settings.cross_encoder == NO_MODEL else _names(settings.cross_encoder)
    prompts = parse_prompts(settings.prompts)
    if unused := prompts.keys() - set(names):
        raise BadPrompts(f"TEXTMATCH_PROMPTS names models that are not loaded: {', '.join(sorted(unused))}")

    def found(name: str, organisation: str) -> FoundModel:
        directory = find_model(name, organisation, settings.cache_directory)
        check_pinned(name, directory)
        return FoundModel(name, directory, prompts.get(name))

    return FoundModels(
        [found(name, BI_ENCODER_ORGANISATION) for name in names],
        [found(name, CROSS_ENCODER_ORGANISATION) for name in cross_names],
    )


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]


def load_models(settings: EncoderSettings, run_pass: RunPass = run_inline) -> LoadedModels:
    """Find, load and warm up all models; takes some seconds if they are not in the cache.

    Args:
        settings: which models, and how to run them.
        run_pass: runs each warm-up pass: in this thread, unless an inference thread runs models already.
            Loading itself may compute in this thread, because no other thread uses the model yet.

    Raises:
        ModelNotFound: there is no such model.
        UnusableModel: a model cannot be served.
        UnusableDevice: there is no such device.
        UnusableEngine: the engine requested by name is not installed.
    """
    loader = _Loader(settings)
    models = loader.load_all()
    policy = _policy(settings, models, loader.device)
    models = ModelRegistry(
        [_warmed_up(entry, _long_text(entry.model), policy, run_pass) for entry in models.bi_encoders],
        [_warmed_up(entry, _long_pair(entry.model), policy, run_pass) for entry in models.cross_encoders],
    )
    _probe(models, run_pass)
    trim_heap()
    return LoadedModels(models, policy, prepare_thread=loader.prepare_thread)


def convert_models(settings: EncoderSettings) -> None:
    """Load the models without warm-up. Their engine writes the converted models into the cache."""
    _Loader(settings).load_all()


async def convert_in_subprocess(served: ModelRegistry) -> None:
    """Run `python -m services.encoder --convert`, if the models served now were converted.

    OpenVINO holds Python's lock for seconds while it converts a model. So does the import of torch, which the
    native engine needs for a model that is not in the cache. In a thread of the encoder, both would block all
    callers. Failures are ignored, because loading the models afterwards reports them.
    """
    if all(model.engine not in _CONVERTING_ENGINES for model in served.all_models()):
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.encoder",
        "--convert",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


class _Loader:
    """Loads models from the cache if they do not need torch, and the others with torch."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._max_tokens = settings.max_tokens or None
        # First, because it does not need torch: a model that does not exist is reported immediately.
        self._found = find_models(settings)
        self._config = decide_engine(
            settings.engine,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
            cache_directory=settings.cache_directory,
        )
        if NATIVE in self._config.engines:
            # After each matrix product, numpy's threads spin for a while and slow down the kernel's threads.
            threadpool_limits(limits=1, user_api="blas")
        self._torch: TorchLoader | None = None

    @property
    def device(self) -> str:
        return self._config.device

    @property
    def prepare_thread(self) -> Callable[[], None]:
        return self._torch.prepare_thread() if self._torch else lambda: None

    def load_all(self) -> ModelRegistry:
        return ModelRegistry(
            [self._bi_encoder(model) for model in self._found.bi_encoders],
            [self._cross_encoder(model) for model in self._found.cross_encoders],
        )

    def _bi_encoder(self, found: FoundModel) -> RegistryEntry[ServedBiEncoder]:
        with _unusable(f'cannot load "{found.name}"'):
            cached = self._from_cache(NativeBiEncoder, found, found.prompts)
            model: ServedBiEncoder = cached or self._with_torch.bi_encoder(found)
            if cached is None and model.engine == NATIVE:
                # In the cache now. From there its tables are mapped, and torch's copies are freed.
                model = self._from_cache(NativeBiEncoder, found, found.prompts) or model
        _log_loaded(model, "bi-encoder")
        sample = model.tokenize([_SAMPLE], is_query=False)[0]
        # Its own lengths, so that callers who want length 1 and others share batches.
        return RegistryEntry(model, EngineModel(model.model_id, model.outputs, sample, model.is_packed))

    def _cross_encoder(self, found: FoundModel) -> RegistryEntry[ServedCrossEncoder]:
        with _unusable(f'cannot load "{found.name}"'):
            cached = self._from_cache(NativeCrossEncoder, found)
            model: ServedCrossEncoder = cached or self._with_torch.cross_encoder(found)
            if cached is None and model.engine == NATIVE:
                # In the cache now. From there its tables are mapped, and torch's copies are freed.
                model = self._from_cache(NativeCrossEncoder, found) or model
        _log_loaded(model, "cross-encoder")

        sample = model.tokenize_pairs([(_SAMPLE, _SAMPLE)])[0]
        return RegistryEntry(model, EngineModel(model.model_id, model.outputs, sample, model.is_packed))

    def _from_cache(
        self, model_class: Callable[..., Model], found: FoundModel, *options: Prompts | None
    ) -> Model | None:
        if NATIVE not in self._config.engines:
            return None
        try:
            return model_class(found.directory, found.name, self._config, self._max_tokens, *options)
        except UnreadableCache as error:
            _log.info("not in the cache yet", extra={"model": found.name, "reason": str(error)})
        except TextMatchError:
            raise
        except Exception as error:  # noqa: BLE001 -- a damaged file fails in any way, and torch replaces it
            _log.warning("the cache is damaged", extra={"model": found.name, "reason": repr(error)})
        return None

    @cached_property
    def _with_torch(self) -> TorchLoader:
        from services.encoder.torch_loader import TorchLoader

        self._torch = TorchLoader(self._config, self._max_tokens)
        return self._torch


def _policy(settings: EncoderSettings, models: ModelRegistry, device: str) -> BatchPolicy:
    is_cpu = device == "cpu"
    is_native = all(model.engine == NATIVE for model in models.all_models())
    is_fast_start = is_native or not is_cpu
    seconds = settings.batch_milliseconds / 1e3
    return BatchPolicy(
        token_budget=_CPU_MAX_BATCH_TOKENS if is_cpu else _GPU_MAX_BATCH_TOKENS,
        bulk_share=settings.bulk_share,
        forward_cost_tokens=_CPU_FORWARD_COST_TOKENS if is_cpu else _GPU_FORWARD_COST_TOKENS,
        target_seconds=seconds or (_BATCH_SECONDS if is_fast_start else _SLOW_START_BATCH_SECONDS),
    )


def _long_text(model: ServedBiEncoder) -> TokenizedText:
    """A text with as many tokens as the model reads, if a text of the largest size has so many."""
    return model.tokenize([_LONG_SAMPLE], is_query=False)[0]


def _long_pair(model: ServedCrossEncoder) -> TokenizedText:
    """As `_long_text`, a pair."""
    return model.tokenize_pairs([(_SAMPLE, _LONG_SAMPLE)])[0]


def _warmed_up(
    entry: RegistryEntry[Served], longest: TokenizedText, policy: BatchPolicy, run_pass: RunPass
) -> RegistryEntry[Served]:
    """Run batches of all sizes: an engine prepares for each new shape, and takes memory for the largest.

    Returns:
        The entry with the measured speed of full batches of long texts.
    """
    model = entry.engine_model
    seconds_of = partial(_pass_seconds, model, run_pass)
    with _unusable(f"{model.model_id} fails during warm-up"):
        for count in (1, 2, 4):
            seconds_of([model.sample] * count)
        speed = _full_batch_speed(longest, policy, seconds_of)
        budget_tokens = policy.for_speed(speed).token_budget
        for eighths in range(1, 9):
            tokens = budget_tokens * eighths // 8
            seconds_of([model.sample] * max(1, tokens // max(1, model.sample.token_count)))
        # Or one text that is longer than a batch should be. In a reload, callers would have to wait for it.
        can_take_long = run_pass is run_inline
        seconds_of(_long_batch(longest, max(budget_tokens, longest.token_count * can_take_long)))
    return replace(entry, engine_model=replace(model, tokens_per_second=speed))


def _full_batch_speed(
    longest: TokenizedText, policy: BatchPolicy, seconds_of: Callable[[Sequence[TokenizedText]], float]
) -> float:
    """Tokens per second of a batch that takes as long as it should, or is as large as it may be.

    Batches are doubled until one takes longer. Between the last two, the time is taken to be a straight line.
    """
    target_seconds = policy.target_seconds or math.inf
    wanted_tokens = min(_FIRST_WARM_UP_TOKENS, policy.token_budget)
    tokens, seconds = 0, 0.0
    while True:
        batch = _long_batch(longest, wanted_tokens)
        before, before_seconds = tokens, seconds
        tokens = sum(text.token_count for text in batch)
        seconds = max(min(seconds_of(batch) for _ in range(2)), 1e-6)
        if seconds > target_seconds and before:
            share = (target_seconds - before_seconds) / (seconds - before_seconds)
            return (before + share * (tokens - before)) / target_seconds
        if seconds > target_seconds or 2 * wanted_tokens > policy.token_budget:
            return tokens / seconds
        wanted_tokens *= 2


def _long_batch(longest: TokenizedText, tokens: int) -> list[TokenizedText]:
    """A batch of about so many tokens in texts that are as long as possible."""
    length = max(1, min(tokens, longest.token_count))
    type_ids = None if longest.type_ids is None else longest.type_ids[:length]
    return [replace(longest, ids=longest.ids[:length], type_ids=type_ids)] * (tokens // length)


def _pass_seconds(model: EngineModel, run_pass: RunPass, batch: Sequence[TokenizedText]) -> float:
    def run() -> float:
        started = time.perf_counter()
        model.forward(batch)
        return time.perf_counter() - started

    return run_pass(run)


def _probe(models: ModelRegistry, run_pass: RunPass) -> None:
    """Warn about each model that gives nearly the same score to all pairs of texts of a language."""
    # Models that were replaced are not reported any longer.
    metrics.MODEL_SCORE_SPREAD.clear()
    scores: list[tuple[str, Callable[[Sequence[str]], Rows]]] = [
        *((entry.model.model_id, partial(_cosines, entry.model)) for entry in models.bi_encoders),
        *((entry.model.model_id, partial(_pair_scores, entry.model)) for entry in models.cross_encoders),
    ]
    for model_id, scores_of in scores:
        for language, texts in PROBES.items():
            found: list[ScoreSpread] = []
            run_pass(partial(_measure_spread, scores_of, texts, found))
            (measured,) = found
            metrics.MODEL_SCORE_SPREAD.labels(model_id, language).set(measured.spread)
            if measured.problem:
                fields = {"model_id": model_id, "language": language, "problem": measured.problem}
                _log.warning("the model does not tell texts apart: useless for this language", extra=fields)


def _measure_spread(
    scores_of: Callable[[Sequence[str]], Rows], texts: Sequence[str], found: list[ScoreSpread]
) -> float:
    started = time.perf_counter()
    found.append(score_spread(scores_of(texts)))
    return time.perf_counter() - started


def _cosines(model: ServedBiEncoder, texts: Sequence[str]) -> Rows:
    """Of each text with each text: (texts, texts)."""
    queries = model.embed(model.tokenize(texts, is_query=True))
    cosines: Rows = queries @ model.embed(model.tokenize(texts, is_query=False)).T
    return cosines


def _pair_scores(model: ServedCrossEncoder, texts: Sequence[str]) -> Rows:
    """Raw scores of each text with each text: (pairs,)."""
    _, raw = model.score(model.tokenize_pairs([(one, other) for one in texts for other in texts]))
    return raw


@contextmanager
def _unusable(message: str) -> Iterator[None]:
    """Turn any exception of a library into UnusableModel."""
    try:
        yield
    except TextMatchError:
        raise
    except Exception as error:
        raise UnusableModel(f"{message}: {error!r}") from error


def _log_loaded(model: ServedBiEncoder | ServedCrossEncoder, kind: str) -> None:
    fields = {"engine": model.engine, "dtype": model.dtype, "device": model.device}
    _log.info("loaded", extra={"model_id": model.model_id, "kind": kind, **fields})
