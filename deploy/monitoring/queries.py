"""PromQL for panels. Each query is limited to the namespaces chosen on the dashboard."""

from __future__ import annotations

from deploy.monitoring.panels import Query

NEEDS_CUDA = "a GPU"
NEEDS_PADDING = "a model whose texts are padded"
WHERE = 'namespace=~"$namespace"'
ONLY_MATCH = 'method="Match"'


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Increase a second over all processes, for each value of the labels `by`."""
    selector = f"{metric}{{{WHERE}{',' if where else ''}{where}}}"
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({selector}[$__rate_interval]))"


def quantiles(
    metric: str, where: str = "", quantiles: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> tuple[Query, ...]:
    """Quantiles of a histogram."""
    buckets = rate(f"{metric}_bucket", "le", where)
    return tuple(
        Query(f"histogram_quantile({quantile}, {buckets})", f"p{quantile * 100:g}") for quantile in quantiles
    )


def mean(metric: str) -> str:
    """Mean of what a histogram counted."""
    return f"{rate(metric + '_sum')} / {rate(metric + '_count')}"


def heatmap(metric: str) -> tuple[Query, ...]:
    """A histogram's buckets over time."""
    return (Query(rate(f"{metric}_bucket", "le"), "{{le}}"),)


def gauge(metric: str, by: str = "") -> str:
    """A gauge that several processes show alike, for each value of the labels `by`."""
    grouping = f" by ({by})" if by else ""
    return f"max{grouping} ({metric}{{{WHERE}}})"
