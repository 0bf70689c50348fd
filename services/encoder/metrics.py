"""Metrics of the encoder."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from textmatch.runtime.metrics import SECONDS_BUCKETS

_POWERS_OF_TWO = tuple(2**exponent for exponent in range(16))

STAGE_SECONDS = Histogram(
    "textmatch_encoder_stage_seconds",
    "Time of each stage: tokenise and queue of a call, forward of a batch, serialise of an answer.",
    ["stage"],
    buckets=SECONDS_BUCKETS,
)
BATCH_TEXTS = Histogram(
    "textmatch_encoder_batch_texts",
    "Texts or pairs in a forward pass.",
    buckets=_POWERS_OF_TWO[:11],
)
BATCH_TOKENS = Histogram(
    "textmatch_encoder_batch_tokens",
    "Tokens in a forward pass, without padding.",
    buckets=_POWERS_OF_TWO[3:],
)
PADDING_RATIO = Histogram(
    "textmatch_encoder_padding_ratio",
    "Tokens computed for each token of a text; 1 is no padding.",
    buckets=(1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0),
)
QUEUE_TEXTS = Gauge("textmatch_encoder_queue_texts", "Texts or pairs that wait.", ["lane"])
QUEUE_TOKENS = Gauge("textmatch_encoder_queue_tokens", "Tokens that wait.", ["lane"])
REJECTIONS_TOTAL = Counter("textmatch_encoder_rejections_total", "Calls refused, by why.", ["reason"])
DROPPED_TOTAL = Counter(
    "textmatch_encoder_dropped_total",
    "Calls dropped before they were computed: cancelled by the caller, or too late.",
    ["reason"],
)
TOKENS_TOTAL = Counter("textmatch_encoder_tokens_total", "Tokens computed, without padding.", ["lane"])
TRUNCATED_TOTAL = Counter("textmatch_encoder_truncated_total", "Texts or pairs whose end was cut off.")
FAILED_TEXTS_TOTAL = Counter("textmatch_encoder_failed_texts_total", "Texts that a model failed on, alone.")
RELOADS_TOTAL = Counter("textmatch_encoder_reloads_total", "Reloads of the models: done, failed.", ["result"])
MODEL_INFO = Gauge(
    "textmatch_encoder_model_info",
    "1 for each loaded model.",
    ["model_id", "name", "kind", "engine", "dtype", "device"],
)
DEVICE_MEMORY_BYTES = Gauge(
    "textmatch_encoder_device_memory_bytes", "Memory that tensors take on the GPU.", ["device"]
)
DEVICE_UTILIZATION_RATIO = Gauge(
    "textmatch_encoder_device_utilization_ratio",
    "Part of the last moment in which the GPU ran anything; not there if the driver cannot be asked.",
    ["device"],
)
