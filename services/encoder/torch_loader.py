"""Load models with torch, and cache those that do not need torch the next time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import disable_progress_bar

from services.encoder import metrics
from services.encoder.loading import FoundModel
from textmatch.models.bi_encoder import TorchBiEncoder
from textmatch.models.cross_encoder import TorchCrossEncoder
from textmatch.models.engines import EngineConfig

_log = logging.getLogger(__name__)


class TorchLoader:
    """Loads models as configured, and describes in the cache those that can run without torch."""

    def __init__(self, config: EngineConfig, max_tokens: int | None) -> None:
        _quieten_libraries()
        self._config = config
        self._max_tokens = max_tokens
        torch.set_num_threads(config.threads or torch.get_num_threads())
        if config.device != "cpu":
            _show_device(config.device)

    def prepare_thread(self) -> Callable[[], None]:
        """A function that sets up the thread that runs the models."""
        threads = torch.get_num_threads()
        return lambda: torch.set_num_threads(threads)

    def bi_encoder(self, found: FoundModel) -> TorchBiEncoder:
        """Load a bi-encoder.

        Raises:
            UnusableModel: it cannot be served.
        """
        model = TorchBiEncoder.load(
            found.directory, found.name, self._config, self._max_tokens, found.prompts
        )
        self._describe(model)
        return model

    def cross_encoder(self, found: FoundModel) -> TorchCrossEncoder:
        """Load a cross-encoder.

        Raises:
            UnusableModel: it cannot be served.
        """
        model = TorchCrossEncoder.load(found.directory, found.name, self._config, self._max_tokens)
        self._describe(model)
        return model

    def _describe(self, model: TorchBiEncoder | TorchCrossEncoder) -> None:
        if description := model.describe():
            description.save(self._config.cache_directory, model.model_id)


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
    """Silence transformers, which bypasses the root logger and draws progress bars."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
