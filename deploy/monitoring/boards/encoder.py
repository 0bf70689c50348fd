"""What the encoders do with their time."""

from __future__ import annotations

from deploy.monitoring.panels import Dashboard, Kind, Panel, Query, Unit
from deploy.monitoring.queries import NEEDS_CUDA, NEEDS_PADDING, WHERE, heatmap, mean, rate

ENCODER = Dashboard(
    "textmatch-encoder",
    "textmatch · encoder",
    "What the encoders do with their time: stages, batches, lanes, refusals, device.",
    (
        Panel(
            "Tokens computed",
            "By lane, without padding.",
            (Query(rate("textmatch_encoder_tokens_total", "lane"), "{{lane}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Tokens waiting",
            "By lane. Encoders are scaled on this.",
            (Query(f"sum by (lane) (textmatch_encoder_queue_tokens{{{WHERE}}})", "{{lane}}"),),
        ),
        Panel(
            "Texts waiting",
            "By lane.",
            (Query(f"sum by (lane) (textmatch_encoder_queue_texts{{{WHERE}}})", "{{lane}}"),),
        ),
        Panel(
            "Stages, p95",
            "Tokenise and queue of a call, forward of a batch, serialise of an answer.",
            (
                Query(
                    "histogram_quantile(0.95, "
                    + rate("textmatch_encoder_stage_seconds_bucket", "le, stage")
                    + ")",
                    "{{stage}}",
                ),
            ),
            Unit.SECONDS,
        ),
        Panel(
            "Time in forward passes",
            "Share of the time; 1 is an engine that never waits, for each encoder.",
            (
                Query(
                    f'sum by (instance) (rate(textmatch_encoder_stage_seconds_sum{{{WHERE},stage="forward"}}'
                    "[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
            Unit.SHARE,
        ),
        Panel(
            "Latency of calls",
            "By method, p95.",
            (
                Query(
                    "histogram_quantile(0.95, "
                    + rate(
                        "textmatch_rpc_seconds_bucket", "le, method", 'service="textmatch.v1.EncoderService"'
                    )
                    + ")",
                    "{{method}}",
                ),
            ),
            Unit.SECONDS,
        ),
        Panel(
            "Texts in a batch", "Distribution.", heatmap("textmatch_encoder_batch_texts"), kind=Kind.HEATMAP
        ),
        Panel(
            "Tokens in a batch",
            "Distribution.",
            heatmap("textmatch_encoder_batch_tokens"),
            kind=Kind.HEATMAP,
        ),
        Panel(
            "Mean batch",
            "Texts and tokens in a forward pass.",
            (
                Query(mean("textmatch_encoder_batch_texts"), "texts"),
                Query(mean("textmatch_encoder_batch_tokens"), "tokens"),
            ),
        ),
        Panel(
            "Padding",
            "Tokens computed for each token of a text; packed models have no series.",
            (Query(mean("textmatch_encoder_padding_ratio"), "mean"),),
            needs=NEEDS_PADDING,
        ),
        Panel(
            "Refused calls",
            "By reason: more work than can be done in time.",
            (Query(rate("textmatch_encoder_rejections_total", "reason"), "{{reason}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Dropped calls",
            "Cancelled by the caller, or too late, before they cost anything.",
            (Query(rate("textmatch_encoder_dropped_total", "reason"), "{{reason}}"),),
            Unit.PER_SECOND,
        ),
        Panel(
            "Texts cut off or failed",
            "Longer than the model reads; or that it failed on.",
            (
                Query(rate("textmatch_encoder_truncated_total"), "cut off"),
                Query(rate("textmatch_encoder_failed_texts_total"), "failed"),
            ),
            Unit.PER_SECOND,
        ),
        Panel(
            "Reloads",
            "Of the models, by result.",
            (Query(f"sum by (result) (textmatch_encoder_reloads_total{{{WHERE}}})", "{{result}}"),),
        ),
        Panel(
            "Device memory",
            "Of tensors on the GPU.",
            (Query(f"textmatch_encoder_device_memory_bytes{{{WHERE}}}", "{{instance}} {{device}}"),),
            Unit.BYTES,
            needs=NEEDS_CUDA,
        ),
        Panel(
            "Memory of the process",
            "Resident.",
            (
                Query(
                    f"process_resident_memory_bytes{{{WHERE}}}"
                    " and on (instance) textmatch_encoder_batch_texts_count",
                    "{{instance}}",
                ),
            ),
            Unit.BYTES,
        ),
    ),
)
