from __future__ import annotations

import json
import logging

from textmatch.runtime import logs


def record(message: str, **extra: object) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", logging.INFO, __file__, 1, message, (), None, extra=extra)


def test_json_lines_carry_extra_fields_and_the_request_id():
    logs.request_id.set("abc")
    try:
        entry = json.loads(logs.JsonFormatter("matcher").format(record("删除 done", count=3)))
    finally:
        logs.request_id.set("")
    assert entry["message"] == "删除 done"
    assert (entry["service"], entry["count"], entry["request_id"], entry["level"]) == (
        "matcher",
        3,
        "abc",
        "INFO",
    )


def test_text_lines_end_with_extra_fields():
    assert logs.TextFormatter().format(record("started", port=1)).endswith("INFO x: started port=1")
