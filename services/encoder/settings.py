"""Settings of the encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from textmatch.runtime.settings import ProcessSettings, ServerSettings, load, setting

NO_MODEL = "none"


@dataclass(frozen=True)
class EncoderSettings(ProcessSettings, ServerSettings):
    """Read once at start."""

    host: str = setting("TEXTMATCH_ENCODER_HOST", "127.0.0.1", "Address the gRPC server listens on.")
    port: int = setting("TEXTMATCH_ENCODER_PORT", 50051, "Port of the gRPC server.", minimum=0)
    metrics_port: int = setting(
        "TEXTMATCH_ENCODER_METRICS_PORT", 9101, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    bi_encoder: str = setting(
        "TEXTMATCH_BI_ENCODER",
        "textmatch-bi-encoder-en",
        "Bi-encoders, by name or path, with commas between them; the first is the default.",
    )
    cross_encoder: str = setting(
        "TEXTMATCH_CROSS_ENCODER",
        "textmatch-cross-encoder-en",
        "Cross-encoder, by name or path; `none` loads none.",
    )
    device: str = setting(
        "TEXTMATCH_ENCODER_DEVICE", "auto", "`cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if there is one."
    )
    dtype: str = setting(
        "TEXTMATCH_ENCODER_DTYPE",
        "auto",
        "Precision; `auto` takes bfloat16 where the processor computes with it.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    engine: str = setting(
        "TEXTMATCH_ENGINE",
        "auto",
        "What runs transformers; `auto`: the first of native (AMX), OpenVINO (bfloat16), torch that can.",
        choices=("auto", "native", "openvino", "torch"),
    )
    cache_dir: str = setting(
        "TEXTMATCH_CACHE_DIR",
        "~/.cache/textmatch",
        "Folder for what engines prepare for a model, so that the next start is quick.",
    )
    threads: int = setting(
        "TEXTMATCH_ENCODER_THREADS", 0, "Threads a forward pass may use; 0: one a core.", minimum=0
    )
    max_tokens: int = setting(
        "TEXTMATCH_ENCODER_MAX_TOKENS",
        0,
        "Tokens after which texts are cut; 0: as the model does.",
        minimum=0,
    )
    max_texts: int = setting("TEXTMATCH_ENCODER_MAX_TEXTS", 1024, "Texts or pairs in one call.", minimum=1)
    batch_tokens: int = setting(
        "TEXTMATCH_ENCODER_BATCH_TOKENS",
        0,
        "Tokens of one forward pass; 0: 1,024 in the native engine, else 2,048 on a CPU, 32,768 on a GPU.",
        minimum=0,
    )
    queue_tokens: int = setting(
        "TEXTMATCH_ENCODER_QUEUE_TOKENS",
        262_144,
        "Tokens that may wait, for interactive and for bulk calls each; more are refused, but for callers"
        " that have few: up to twice as many, in equal parts.",
        minimum=1,
    )
    bulk_share: float = setting(
        "TEXTMATCH_ENCODER_BULK_SHARE",
        0.15,
        "Share of the tokens that bulk calls get at least while interactive calls wait; as batches of single"
        " texts are less efficient, 0.15 keeps a tenth of what bulk calls get alone.",
        minimum=0.01,
        maximum=0.99,
    )

    @property
    def cache_directory(self) -> Path:
        """Where `cache_dir` is."""
        return Path(self.cache_dir).expanduser()


def from_environment() -> EncoderSettings:
    """Read `TEXTMATCH_*`.

    Raises:
        InvalidInput: naming every variable with a bad value.
    """
    return load(EncoderSettings, os.environ)
