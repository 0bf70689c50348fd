"""Load models with torch, and keep those in the cache that can do without it the next time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import disable_progress_bar

from services.encoder import metrics
from services.encoder.locating import FoundModel
from services.encoder.settings import EncoderSettings
from textmatch.models.bi_encoder import BiEncoder
from textmatch.models.cross_encoder import CrossEncoder
from textmatch.models.devices import resolve_device, resolve_dtype
from textmatch.models.engines import EngineOptions
from textmatch.models.prepared import keep_bi_encoder, keep_cross_encoder

Model = TypeVar("Model", BiEncoder, CrossEncoder)


class TorchLoader:
    """Loads models onto the device that the settings name.

    Raises:
        UnusableDevice: there is no such device.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        _quieten_libraries()
        self.device = resolve_device(settings.device)
        self._settings = settings
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        self._options = EngineOptions(settings.engine, torch.get_num_threads(), settings.cache_directory)
        if self.device != "cpu":
            memory_bytes = metrics.DEVICE_MEMORY_BYTES.labels(self.device)
            memory_bytes.set_function(lambda: torch.cuda.memory_allocated(self.device))

    def prepare_thread(self) -> Callable[[], None]:
        """What the thread that runs the models has to do first."""
        threads = torch.get_num_threads()
        return lambda: torch.set_num_threads(threads)

    def bi_encoder(self, found: FoundModel) -> BiEncoder:
        """Load one.

        Raises:
            UnusableModel: it cannot be served.
        """
        model = self._load(BiEncoder, found)
        if described := model.describe():
            keep_bi_encoder(self._settings.cache_directory, model.model_id, described)
        return model

    def cross_encoder(self, found: FoundModel) -> CrossEncoder:
        """Load one.

        Raises:
            UnusableModel: it cannot be served.
        """
        model = self._load(CrossEncoder, found)
        if described := model.describe():
            keep_cross_encoder(self._settings.cache_directory, model.model_id, *described)
        return model

    def _load(self, model_class: type[Model], found: FoundModel) -> Model:
        return model_class.load(
            found.directory,
            found.name,
            device=self.device,
            dtype=resolve_dtype(self._settings.dtype, self.device),
            max_tokens=self._settings.max_tokens or None,
            engine=self._options,
        )


def _quieten_libraries() -> None:
    """Transformers logs past the root logger and draws progress bars."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
