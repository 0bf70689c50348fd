from __future__ import annotations

import subprocess
import sys

import pytest

from textmatch.errors import InvalidInput
from textmatch.runtime import tracing


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported():
    program = """
import sys
from textmatch.runtime.tracing import consuming, current_traceparent, set_up_tracing, trace_id
set_up_tracing("test", "")
with consuming("work", ["00-11111111111111111111111111111111-2222222222222222-01"], collection="faq"):
    assert (current_traceparent(), trace_id()) == ("", "")
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_trace_of_the_first_message_goes_on_and_a_malformed_one_is_ignored():
    program = """
from textmatch.runtime.tracing import consuming, current_traceparent, set_up_tracing, trace_id
set_up_tracing("test", "http://127.0.0.1:1")
first, second = (f"00-{digit * 32}-{'3' * 16}-01" for digit in "12")
with consuming("work", ["", first, second, first], collection="faq"):
    assert trace_id() == "1" * 32
    assert current_traceparent().startswith("00-" + "1" * 32)
with consuming("work", ["no traceparent"], collection="faq"):
    assert len(trace_id()) == 32
    assert trace_id() not in ("1" * 32, "2" * 32)
assert trace_id() == ""
import os
os._exit(0)  # not waiting for the collector, which is not there
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_missing_packages_end_the_start_with_a_clear_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidInput, match=r"needs the packages of textmatch\[tracing\]"):
        tracing.set_up_tracing("test", "http://127.0.0.1:1")
