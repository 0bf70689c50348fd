"""Settings of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textmatch.runtime.settings import ProcessSettings, ServerSettings, setting

NO_MODEL = "none"


@dataclass(frozen=True)
class EncoderSettings(ProcessSettings, ServerSettings):
    """Settings of the encoder, read once at start."""

    host: str = setting("TEXTMATCH_ENCODER_HOST", "127.0.0.1", "Address the gRPC server listens on.")
    port: int = setting("TEXTMATCH_ENCODER_PORT", 50051, "Port of the gRPC server.", minimum=0)
    metrics_port: int = setting(
        "TEXTMATCH_ENCODER_METRICS_PORT", 9101, "Port of `/metrics`; 0 turns it off.", minimum=0
    )
    bi_encoder: str = setting(
        "TEXTMATCH_BI_ENCODER",
        "textmatch-bi-encoder",
        "Bi-encoders by name, hub name with `@revision`, or path, separated by commas; the first is the"
        " default.",
    )
    cross_encoder: str = setting(
        "TEXTMATCH_CROSS_ENCODER",
        "textmatch-cross-encoder",
        "Cross-encoders by name, hub name with `@revision`, or path, separated by commas; the first is the"
        " default. `none` loads none.",
    )
    prompts: str = setting(
        "TEXTMATCH_PROMPTS",
        "",
        'Prompts of bi-encoders that replace their own: `{"MODEL": {"query": "TEXT", "document": "TEXT"}}`.',
    )
    device: str = setting(
        "TEXTMATCH_ENCODER_DEVICE", "auto", "`cpu`, `cuda`, `cuda:N`, or `auto`: a GPU if there is one."
    )
    dtype: str = setting(
        "TEXTMATCH_ENCODER_DTYPE",
        "auto",
        "Precision; `auto` is bfloat16 if the processor computes with it, else float32.",
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
        "Folder for unpacked models, and for converted ones, which make the next start fast.",
    )
    threads: int = setting(
        "TEXTMATCH_ENCODER_THREADS", 0, "Threads of a forward pass; 0: one per core.", minimum=0
    )
    max_tokens: int = setting(
        "TEXTMATCH_ENCODER_MAX_TOKENS",
        0,
        "Tokens after which texts are truncated; 0: the limit of the model.",
        minimum=0,
    )
    max_texts: int = setting("TEXTMATCH_ENCODER_MAX_TEXTS", 1024, "Texts or pairs in one call.", minimum=1)
    batch_milliseconds: float = setting(
        "TEXTMATCH_ENCODER_BATCH_MILLISECONDS",
        0.0,
        "Time of one forward pass, for which a single text may have to wait. A batch has as many tokens as"
        " the model computes in it. 0: 20 with the native engine or a GPU, else 60.",
        minimum=0,
    )
    queue_tokens: int = setting(
        "TEXTMATCH_ENCODER_QUEUE_TOKENS",
        262_144,
        "Tokens that may be queued in each lane (interactive, bulk). Above the limit, a caller is admitted up"
        " to its equal share of the same amount again. A call of more than half of it is queued in parts.",
        minimum=1,
    )
    queue_bytes: int = setting(
        "TEXTMATCH_ENCODER_QUEUE_BYTES",
        256 * 1024 * 1024,
        "Bytes of text that the calls of each lane may hold. Above the limit as for tokens; a larger call is"
        " refused as invalid.",
        minimum=1,
    )
    watchdog_seconds: float = setting(
        "TEXTMATCH_ENCODER_WATCHDOG_SECONDS",
        120.0,
        "Time for a forward pass of a short text, after which the encoder ends to be restarted; 0: never.",
        minimum=0,
    )
    bulk_share: float = setting(
        "TEXTMATCH_ENCODER_BULK_SHARE",
        0.12,
        "Smallest share of the engine's time for bulk calls while interactive calls are queued.",
        minimum=0.01,
        maximum=0.99,
    )

    @property
    def cache_directory(self) -> Path:
        """`cache_dir` as a path, with `~` expanded."""
        return Path(self.cache_dir).expanduser()
