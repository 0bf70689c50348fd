"""Metrics of the encoder."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from textmatch.runtime.metrics import SECONDS_BUCKETS

_POWERS_OF_TWO = tuple(2**exponent for exponent in range(16))

STAGE_SECONDS = Histogram(
    "textmatch_encoder_stage_seconds",
    "Seconds per stage: tokenise and queue per call, forward per batch, serialise per response.",
    ["stage"],
    buckets=SECONDS_BUCKETS,
)
BATCH_TEXTS = Histogram(
    "textmatch_encoder_batch_texts", "Texts or pairs per forward pass.", buckets=_POWERS_OF_TWO[:11]
)
BATCH_TOKENS = Histogram(
    "textmatch_encoder_batch_tokens",
    "Tokens per forward pass, without padding.",
    buckets=_POWERS_OF_TWO[3:],
)
PADDING_RATIO = Histogram(
    "textmatch_encoder_padding_ratio",
    "Computed tokens, with padding, per token of text; 1 means no padding.",
    buckets=(1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0),
)
QUEUE_TEXTS = Gauge("textmatch_encoder_queue_texts", "Texts or pairs that are queued.", ["lane"])
QUEUE_TOKENS = Gauge("textmatch_encoder_queue_tokens", "Tokens that are queued.", ["lane"])
QUEUE_BYTES = Gauge(
    "textmatch_encoder_queue_bytes", "Bytes of the texts of calls that are not answered yet.", ["lane"]
)
MODEL_TOKENS_PER_SECOND = Gauge(
    "textmatch_encoder_model_tokens_per_second",
    "Measured speed of a model's batches, without padding; a batch has as many tokens as fit into its time.",
    ["model_id", "lane"],
)
REJECTIONS_TOTAL = Counter("textmatch_encoder_rejections_total", "Calls refused, by reason.", ["reason"])
DROPPED_TOTAL = Counter(
    "textmatch_encoder_dropped_total", "Calls dropped from the queue: cancelled, late.", ["reason"]
)
TOKENS_TOTAL = Counter("textmatch_encoder_tokens_total", "Tokens computed, without padding.", ["lane"])
UNKNOWN_TOKENS_RATIO = Histogram(
    "textmatch_encoder_unknown_tokens_ratio",
    "Share of a call's tokens that stand for text unknown to the model.",
    ["model_id"],
    buckets=(0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
)
TRUNCATED_TOTAL = Counter("textmatch_encoder_truncated_total", "Texts or pairs that were truncated.")
FAILED_TEXTS_TOTAL = Counter("textmatch_encoder_failed_texts_total", "Texts that a model failed on alone.")
OUT_OF_MEMORY_TOTAL = Counter(
    "textmatch_encoder_out_of_memory_total", "Batches that did not fit into memory and were halved."
)
RELOADS_TOTAL = Counter("textmatch_encoder_reloads_total", "Reloads of the models: done, failed.", ["result"])
MODEL_INFO = Gauge(
    "textmatch_encoder_model_info",
    "1 for each loaded model.",
    ["model_id", "name", "kind", "engine", "dtype", "device"],
)
MODEL_SCORE_SPREAD = Gauge(
    "textmatch_encoder_model_score_spread",
    "Largest minus smallest score of built-in pairs of unrelated texts, by language; near 0: collapsed.",
    ["model_id", "language"],
)
DEVICE_MEMORY_BYTES = Gauge(
    "textmatch_encoder_device_memory_bytes", "GPU memory used by tensors.", ["device"]
)
DEVICE_UTILIZATION_RATIO = Gauge(
    "textmatch_encoder_device_utilization_ratio",
    "Share of recent time in which the GPU was busy; missing if the driver does not report it.",
    ["device"],
)
