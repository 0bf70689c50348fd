"""Low-rank adapters over a base model: how the default cross-encoder is shipped.

An adapter directory is what PEFT and sentence-transformers write: `adapter_config.json` names the base model,
`adapter_model.safetensors` holds the low-rank deltas and the scoring head, the rest is the usual
configuration. Loading adds the deltas to the base weights; what remains is an ordinary cross-encoder.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from sentence_transformers import CrossEncoder
from transformers.utils import logging as transformers_logging

from textmatch.errors import ModelNotFound
from textmatch.models.adapter_config import ADAPTER_CONFIG, read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def load_cross_encoder_directory(path: Path, base: Path, *, device: str | None = None) -> CrossEncoder:
    """The cross-encoder made of the base model in `base` and the adapter in `path`, with merged weights.

    Needs no network. `predict` returns scores in 0..1.

    Raises:
        ModelNotFound: one of the adapter's files is missing. Weights in another format than safetensors count
            as missing, since loading them could run code.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, _TOKENIZER_CONFIG):
        if not (path / name).is_file():
            raise ModelNotFound(str(path), f'the adapter directory "{path}" has no {name}')
    max_length_tokens = int(read_json(path / _TOKENIZER_CONFIG)["model_max_length"])
    with _known_complaints_silenced():
        model: CrossEncoder = CrossEncoder(
            str(base), num_labels=1, max_length=max_length_tokens, device=device, local_files_only=True
        )
        transformer: Any = model[0]
        transformer.model = PeftModel.from_pretrained(transformer.model, str(path)).merge_and_unload()
    model.eval()
    return model


@contextmanager
def _known_complaints_silenced() -> Iterator[None]:
    """Hides that the base has no scoring head, which the adapter brings, and PEFT's use of an old name."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
