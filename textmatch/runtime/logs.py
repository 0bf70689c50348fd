"""Logs on stderr: one JSON object per line, or short text lines."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from textmatch.runtime import tracing

request_id: ContextVar[str] = ContextVar("request_id", default="")
api_key_name: ContextVar[str] = ContextVar("api_key_name", default="")
collection: ContextVar[str] = ContextVar("collection", default="")

_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logs(service: str, level: str, style: str) -> None:
    """Send all logs of this process to stderr.

    Args:
        service: name in every JSON line.
        level: "DEBUG", "INFO", "WARNING" or "ERROR".
        style: "json" or "text".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if style == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for noisy in ("httpx", "httpcore", "urllib3", "kombu", "amqp", "qdrant_client"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; the items of `extra` become fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if current := request_id.get():
            entry["request_id"] = current
        if caller := api_key_name.get():
            entry["api_key"] = caller
        if name := collection.get():
            entry.setdefault("collection", name)
        if trace := tracing.trace_id():
            entry["trace_id"] = trace
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00.000 INFO encoder.batching: message key=value`."""

    default_time_format = "%H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging calls it so
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        return super().formatMessage(record) + extra


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES}
