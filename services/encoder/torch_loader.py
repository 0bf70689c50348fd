"""Load models with torch, and cache those that do not need torch the next time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import disable_progress_bar

from services.encoder import metrics
from services.encoder.loading import FoundModel
from services.encoder.settings import EncoderSettings
from textmatch.models.bi_encoder import BiEncoder
from textmatch.models.cross_encoder import CrossEncoder
from textmatch.models.devices import resolve_device, resolve_dtype
from textmatch.models.engines import EngineOptions
from textmatch.models.native_models import keep_bi_encoder, keep_cross_encoder

_log = logging.getLogger(__name__)

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
            _show_device(self.device)

    def prepare_thread(self) -> Callable[[], None]:
        """A function that sets up the thread that runs the models."""
        threads = torch.get_num_threads()
        return lambda: torch.set_num_threads(threads)

    def bi_encoder(self, found: FoundModel) -> BiEncoder:
        """Load a bi-encoder.

        Raises:
            UnusableModel: it cannot be served.
        """
        model = self._load(BiEncoder, found)
        if described := model.describe():
            keep_bi_encoder(self._settings.cache_directory, model.model_id, described)
        return model

    def cross_encoder(self, found: FoundModel) -> CrossEncoder:
        """Load a cross-encoder.

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


def _show_device(device: str) -> None:
    """Export the metrics of a GPU."""
    metrics.DEVICE_MEMORY_BYTES.labels(device).set_function(lambda: torch.cuda.memory_allocated(device))
    try:
        torch.cuda.utilization(device)
    except Exception as error:  # noqa: BLE001 -- without nvidia-ml-py, or for any reason of the driver's
        _log.info("no metric of the GPU's utilisation", extra={"reason": repr(error)})
        return
    metrics.DEVICE_UTILIZATION_RATIO.labels(device).set_function(lambda: _utilization_ratio(device))


def _utilization_ratio(device: str) -> float:
    """NaN if the driver does not answer: the other metrics must still be exported."""
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # noqa: BLE001 -- the errors of nvidia-ml-py have no base class that can be named here
        return math.nan


def _quieten_libraries() -> None:
    """Transformers logs past the root logger and draws progress bars."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
