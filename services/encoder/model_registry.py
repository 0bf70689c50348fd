"""The registry of loaded models, and their replacement without downtime.

Does not import torch: loading.py and torch_loader.py load the models, this module only knows their types.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from services.encoder import metrics
from services.encoder.batching import EngineModel
from textmatch.errors import InvalidInput, ModelNotFound
from textmatch.models.calibration import CosineScorer, PairClassifier
from textmatch.models.native.models import NativeBiEncoder, NativeCrossEncoder
from textmatch.runtime.process import trim_heap

if TYPE_CHECKING:
    from textmatch.models.bi_encoder import TorchBiEncoder
    from textmatch.models.cross_encoder import TorchCrossEncoder

ServedBiEncoder: TypeAlias = "NativeBiEncoder | TorchBiEncoder"
ServedCrossEncoder: TypeAlias = "NativeCrossEncoder | TorchCrossEncoder"
ServedModel: TypeAlias = "ServedBiEncoder | ServedCrossEncoder"
EmbeddingScorer: TypeAlias = CosineScorer | PairClassifier
Kind = TypeVar("Kind", bound="ServedModel", covariant=True)

_log = logging.getLogger(__name__)

# Calls that began with the old models have ended by then.
_RELEASED_AFTER_SECONDS = 60.0


@dataclass(frozen=True)
class RegistryEntry(Generic[Kind]):
    """A model, and the part of it that the inference thread runs."""

    model: Kind
    engine_model: EngineModel


@dataclass(frozen=True)
class ModelRegistry:
    """All loaded models; the first of each kind is the default."""

    bi_encoders: Sequence[RegistryEntry[ServedBiEncoder]]
    cross_encoders: Sequence[RegistryEntry[ServedCrossEncoder]]

    def all_models(self) -> list[ServedModel]:
        """The models of both kinds."""
        return [entry.model for entry in (*self.bi_encoders, *self.cross_encoders)]

    def engine_models(self) -> list[EngineModel]:
        """What the inference thread runs, of both kinds."""
        return [entry.engine_model for entry in (*self.bi_encoders, *self.cross_encoders)]

    def bi_encoder(self, name: str) -> RegistryEntry[ServedBiEncoder]:
        """Find a bi-encoder by name or model id; "" means the default.

        Raises:
            ModelNotFound: naming the loaded ones.
        """
        return _find(self.bi_encoders, name, "bi-encoder")

    def cross_encoder(self, name: str) -> RegistryEntry[ServedCrossEncoder]:
        """Find a cross-encoder by name or model id; "" means the default.

        Raises:
            ModelNotFound: naming the loaded ones.
        """
        return _find(self.cross_encoders, name, "cross-encoder")

    def bi_encoder_with_classifier(self, name: str) -> tuple[RegistryEntry[ServedBiEncoder], EmbeddingScorer]:
        """The named bi-encoder and its pair classifier; for "", the first that has one.

        Raises:
            ModelNotFound: there is no such model, or none has a pair classifier.
            InvalidInput: the named model has no pair classifier.
        """
        candidates = [self.bi_encoder(name)] if name else self.bi_encoders
        for entry in candidates:
            if (classifier := entry.model.pair_classifier) is not None:
                return entry, classifier
        if name:
            raise InvalidInput.of_field("model", f'"{name}" has no pair classifier')
        raise ModelNotFound("", "no bi-encoder with a pair classifier is loaded")


def _find(loaded: Sequence[RegistryEntry[Kind]], name: str, kind: str) -> RegistryEntry[Kind]:
    for entry in loaded:
        if name in ("", entry.model.name, entry.model.model_id):
            return entry
    names = ", ".join(entry.model.name for entry in loaded) or "none"
    wanted = f'no {kind} "{name}" is loaded' if name else f"no {kind} is loaded"
    raise ModelNotFound(name, f"{wanted}; loaded: {names}")


class Reloader:
    """Reloads the models on request, one reload at a time, while the old models serve.

    Warm-up passes run in the inference thread as tasks, not as jobs. A failed job reports its texts as
    invalid and can break the engine, and its tokens would count as callers' work.
    """

    def __init__(self) -> None:
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Request a reload. Requests during a reload lead to one more reload."""
        self._requested.set()

    async def run(
        self, load: Callable[[], Awaitable[ModelRegistry]], serve: Callable[[ModelRegistry], None]
    ) -> None:
        """Reload on each request until cancelled. A request made before `run` counts.

        Args:
            load: finds, loads and warms up the models, without blocking the event loop.
            serve: makes new calls use the models.
        """
        while True:
            await self._requested.wait()
            self._requested.clear()
            await _reload(load, serve)
            # Models contain reference cycles, which the garbage collector may find late.
            asyncio.get_running_loop().call_later(_RELEASED_AFTER_SECONDS, trim_heap)


async def _reload(
    load: Callable[[], Awaitable[ModelRegistry]], serve: Callable[[ModelRegistry], None]
) -> None:
    started = time.monotonic()
    _log.info("reloading the models")
    try:
        models = await load()
    except Exception as error:  # noqa: BLE001 -- any failure leaves the old models serving
        metrics.RELOADS_TOTAL.labels("failed").inc()
        _log.error("cannot reload; the old models keep serving: %s", " ".join(str(error).split()))
        return
    serve(models)
    metrics.RELOADS_TOTAL.labels("done").inc()
    _log.info("reloaded", extra={"reload_seconds": round(time.monotonic() - started, 2)})
